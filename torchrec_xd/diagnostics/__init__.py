"""What passes between the domains of a trained run: measured on rows of a split, as JSON and as a page."""

from torchrec_xd.diagnostics.diagnosis import DATA_FILE, PAGE_FILE, diagnose

__all__ = ["DATA_FILE", "PAGE_FILE", "diagnose"]
