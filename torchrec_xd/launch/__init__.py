"""Launching runs on clusters, through TorchX."""
