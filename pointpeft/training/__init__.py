"""The training loop and what it stands on; knows no task and no data set."""
