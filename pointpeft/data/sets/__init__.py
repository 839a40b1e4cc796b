"""Data sets: layouts of many labelled clouds on disk."""
