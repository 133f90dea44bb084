"""Fast R-CNN, end to end. See README.md for the tour and CONTRIBUTING.md for the map of the code."""

__version__ = "0.1.0"
