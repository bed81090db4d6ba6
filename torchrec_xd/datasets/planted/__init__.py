"""Planted worlds: made-up data whose true probabilities are known."""
