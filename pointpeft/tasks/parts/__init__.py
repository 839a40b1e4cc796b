"""One part label per point of a cloud of known category."""
