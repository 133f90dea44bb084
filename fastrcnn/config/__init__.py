"""The configuration keys and how Hydra composes them."""
