"""Functions that build objects from the configuration. Apart from the command line, only this package reads it."""
