"""Shared by all operations: loading, backend choice, argument checks, Triton launches, dropout, products."""
