"""Data sets made of the real events of the Complete Journey."""
