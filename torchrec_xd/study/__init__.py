"""Studies: several models, data sets and seeds, trained as one and compared so that the answer can be no."""
