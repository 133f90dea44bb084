"""Proposals: the store, selective search, other programs' files."""
