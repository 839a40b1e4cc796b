"""File formats: bytes to arrays, with bounds on what a file may ask for."""
