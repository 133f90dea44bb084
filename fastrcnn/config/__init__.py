"""The configuration: its keys, and how Hydra composes it."""
