"""Ground truth that is independent of the annotation format, problems in data sets, and reading of text files."""
