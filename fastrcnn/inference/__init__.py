"""Detect objects: networks, detectors and their output."""
