"""Exact distributed metrics, and whether a difference between models is significant."""
