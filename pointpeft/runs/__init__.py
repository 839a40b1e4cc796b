"""A configuration in, a run folder out: fine-tuning, pre-training, evaluation, prediction, comparison."""
