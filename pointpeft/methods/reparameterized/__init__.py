"""Methods that change the frozen maps by factors, scales and shifts, most of which can be merged."""
