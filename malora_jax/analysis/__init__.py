"""Reports and plots about trained runs."""
