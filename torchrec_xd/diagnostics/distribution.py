"""How numbers of a known range are spread, gathered batch by batch, and how that is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor


class Distribution:
    """Count, mean, standard deviation and histogram of numbers in [low, high]; memory does not grow with them."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high = low, high
        self.count, self.sum, self.squares = 0, 0.0, 0.0
        self.histogram = torch.zeros(bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Numbers of any shape."""
        values = values.detach().double().flatten().cpu()
        self.count += values.numel()
        self.sum += float(values.sum())
        self.squares += float(values.square().sum())
        within = values.clamp(self.low, self.high)  # rounding may leave the range, and histc would drop that
        self.histogram += torch.histc(within, len(self.histogram), self.low, self.high)

    def summary(self) -> dict[str, Any]:
        """As JSON: `count`, `mean`, `std`, `low`, `high`, `histogram` (counts of equal bins from low to high)."""
        mean = self.sum / self.count if self.count else None
        spread = None if mean is None else max(self.squares / self.count - mean**2, 0.0) ** 0.5
        counts = [int(count) for count in self.histogram.tolist()]
        return {
            "count": self.count,
            "mean": mean,
            "std": spread,
            "low": self.low,
            "high": self.high,
            "histogram": counts,
        }


def histogram_figure(summaries: Mapping[str, Mapping[str, Any]], axis: str) -> go.Figure:
    """Summaries of distributions over one range, by name, as a line each: the share of the numbers in every bin."""
    lines = []
    for name, summary in summaries.items():
        counts, low, high = summary["histogram"], summary["low"], summary["high"]
        middles = [low + (i + 0.5) * (high - low) / len(counts) for i in range(len(counts))]
        shares = [count / max(summary["count"], 1) for count in counts]
        lines.append(go.Scatter(name=name, x=middles, y=shares, mode="lines", line={"shape": "hvh"}))
    return laid_out(go.Figure(lines), axis, "share")


def laid_out(figure: go.Figure, x: str, y: str) -> go.Figure:
    """The figure with titles on its axes, at the height that all have."""
    figure.update_layout(height=320, margin={"t": 20, "b": 40, "l": 60, "r": 20}, showlegend=True)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def text(value: float | None, form: str = ".4f") -> str:
    """A number for a table; what is not known is a dash."""
    return "–" if value is None else format(value, form)
