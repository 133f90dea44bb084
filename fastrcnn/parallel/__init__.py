"""Processes that torchrun starts, worker processes that this program starts, threads, and signals."""
