"""Readers of other programs' proposal files; all give the same `Content`."""
