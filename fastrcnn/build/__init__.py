"""Functions that build objects from the configuration. Only this package and the command line read it."""
