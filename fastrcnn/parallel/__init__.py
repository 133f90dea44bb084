"""Several processes: those that torchrun starts, and worker processes that this program starts."""
