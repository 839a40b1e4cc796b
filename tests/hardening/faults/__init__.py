"""Runs that are killed, interrupted, out of disk, or find their files damaged."""
