"""HTML reports that need no network."""
