"""From an exported artefact to scores: imports no torch."""
