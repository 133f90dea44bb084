"""The only readers of the configuration, beside the command line."""
