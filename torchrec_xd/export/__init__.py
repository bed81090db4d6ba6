"""From a run to an artefact that servers score with, without torch."""
