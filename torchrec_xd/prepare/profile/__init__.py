"""What a data set is like, as numbers, as findings and as a page."""
