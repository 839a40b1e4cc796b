"""One class per cloud."""
