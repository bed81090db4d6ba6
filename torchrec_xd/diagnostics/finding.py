"""What is wrong with a run, by name, with the number that says so and what to try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A fault of a run that a diagnostic knows by name."""

    name: str
    """As docs/diagnostics.md lists it."""
    text: str
    """Where it is, the number it rests on, the threshold, and why that is the threshold."""
    remedy: str
    """What to try."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}. Try: {self.remedy}"
