"""Detection: networks, detectors and their output."""
