"""One file per command: its dataclass of options, and `run`."""
