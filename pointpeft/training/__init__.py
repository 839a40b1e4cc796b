"""The training loop and its building blocks; independent of tasks and data sets."""
