"""Random cases without end: of the operations, and of damaged files for the readers."""
