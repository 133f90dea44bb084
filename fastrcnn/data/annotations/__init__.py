"""Annotations of a data set, whatever their format: splits, classes, and what is not used."""
