"""`fastrcnn check`: reads a data set, finds problems and reports them."""
