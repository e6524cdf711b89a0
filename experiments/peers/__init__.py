"""Our training beside that of the peers."""
