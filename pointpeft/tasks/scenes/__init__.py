"""One class per point of a scene."""
