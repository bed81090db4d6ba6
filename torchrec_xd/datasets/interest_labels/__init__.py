"""EXIT's interest combination labels, for any logs."""
