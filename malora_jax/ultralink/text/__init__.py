"""Documents and texts: read, cut, compared."""
