"""`fastrcnn check`: what is read, what is found, how it is shown."""
