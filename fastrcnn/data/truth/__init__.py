"""Format-independent ground truth, problems of data sets, and functions for reading text files."""
