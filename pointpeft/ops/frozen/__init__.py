"""Fused pieces of transformer blocks whose weights are frozen."""
