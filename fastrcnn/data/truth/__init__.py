"""What annotations of any format become, what can be wrong with them, and how their text is read."""
