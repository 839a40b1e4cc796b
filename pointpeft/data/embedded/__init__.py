"""The furniture clouds that travel with the package, and how they were made."""
