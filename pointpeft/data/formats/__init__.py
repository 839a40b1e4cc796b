"""File formats: bytes to arrays, with bounds on the memory that a file may claim."""
