"""Training: the loop, the optimiser, checkpoints, resuming, metrics and SVMs."""
