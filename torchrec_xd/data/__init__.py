"""Parquet row groups to batches."""
