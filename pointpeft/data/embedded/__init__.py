"""The furniture clouds that the package contains, and how they were made."""
