"""Support for processes that torchrun starts, for worker processes and threads of this program, and for signals."""
