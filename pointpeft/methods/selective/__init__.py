"""Methods that train a choice of the existing parameters."""
