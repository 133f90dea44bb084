"""Training: the loop, the optimiser, checkpoints, resuming, records and SVMs."""
