"""The implementation of `fastrcnn check`: read a data set and report its contents and problems."""
