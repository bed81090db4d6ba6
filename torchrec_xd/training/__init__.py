"""Training runs, and what is done with a trained one."""
