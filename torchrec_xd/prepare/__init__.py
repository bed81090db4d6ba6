"""Offline preparation of data sets, as Ibis expressions."""
