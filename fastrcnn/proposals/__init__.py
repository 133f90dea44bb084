"""Proposals: selective search, the proposal store, and conversion from and to other formats."""
