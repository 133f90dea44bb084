"""Annotations of a data set in any format: splits, classes, and unused files."""
