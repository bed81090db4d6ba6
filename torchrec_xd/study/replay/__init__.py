"""Replays: a history of slices of time, each scored before a policy trains on it."""
