"""Diagnostics: what passes between the domains of a model, measured on batches and the model's outputs for them."""
