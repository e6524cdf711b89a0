"""Command-line entries: flags in, one library call, nothing else."""
