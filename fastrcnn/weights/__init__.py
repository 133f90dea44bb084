"""Weights of this and other programs: reading, writing, and what pixels they expect."""
