"""Several processes: torchrun's, and those that this program starts."""
