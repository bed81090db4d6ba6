"""What the values of a column keep to, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the values of a column keep to, as far as statistics can tell."""

    column: str
    low: float | None = None
    high: float | None = None
    nulls: bool = True


@dataclass(frozen=True)
class Range:
    """What statistics know of a column's values."""

    low: float | None
    """None where all are null."""
    high: float | None
    values: int
    """Nulls included."""
    nulls: int

    def __or__(self, other: Range) -> Range:
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        values, nulls = self.values + other.values, self.nulls + other.nulls
        return Range(min(lows, default=None), max(highs, default=None), values, nulls)
