"""Tools for developers of this package, and doors to its commands."""
