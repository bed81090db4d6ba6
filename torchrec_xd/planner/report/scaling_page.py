"""How training scales, as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from torchrec_xd.planner.report.scaling import part_ms, shown_parts
from torchrec_xd.planner.step.estimate import StepEstimate
from torchrec_xd.planner.step.scaling import ScalePoint
from torchrec_xd.reports.page import Grid, number_text, save_page

Drawn = list[tuple[ScalePoint, StepEstimate]]
"""The sizes that fit."""


def save_scaling_page(points: Sequence[ScalePoint], notes: Sequence[str], title: str, path: Path) -> None:
    """Write the page.

    Args:
        points: of which at least one fits.
        notes: what the estimate rests on; paragraphs.
        title: what is trained.
        path: the file.
    """
    drawn: Drawn = [(point, point.step) for point in points if point.step is not None]
    parts: list[str | Grid | go.Figure] = [
        *notes,
        "# Rows per second",
        "The dashed line: every rank as fast as those of the smallest size that fits.",
        _speed_figure(drawn),
        "# Time of a step",
        "All parts of a step. Some of them run at the same time: the step (dots) may be shorter than their sum.",
        _parts_figure(drawn),
    ]
    if drawn[0][0].cost_per_million_rows is not None:
        parts += ["# Cost per million rows", "In the currency of the price.", _cost_figure(drawn)]
    save_page(path, f"Scaling of {title}", [*parts, "# Sizes", _grid(points)])


def _speed_figure(drawn: Drawn) -> go.Figure:
    first = drawn[0][0]
    speeds = [point.rows_per_s or 0.0 for point, _ in drawn]
    ideal = [speeds[0] * point.ranks / first.ranks for point, _ in drawn]
    binds = [f"binds: {step.binds}" for _, step in drawn]
    figure = go.Figure()
    figure.add_scatter(x=_ranks(drawn), y=speeds, mode="lines+markers", name="estimated", text=binds)
    figure.add_scatter(x=_ranks(drawn), y=ideal, mode="lines", name="linear", line_dash="dash")
    figure.update_yaxes(type="log")
    return _laid_out(figure, "rows/s")


def _parts_figure(drawn: Drawn) -> go.Figure:
    figure = go.Figure()
    for name, field in shown_parts([point for point, _ in drawn]).items():
        figure.add_bar(x=_ranks(drawn), y=[part_ms(step, field) for _, step in drawn], name=name)
    steps = [step.step_ms for _, step in drawn]
    figure.add_scatter(x=_ranks(drawn), y=steps, mode="markers", name="step", marker_color="#1c2733")
    figure.update_layout(barmode="stack")
    return _laid_out(figure, "ms")


def _cost_figure(drawn: Drawn) -> go.Figure:
    costs = [point.cost_per_million_rows for point, _ in drawn]
    figure = go.Figure(go.Scatter(x=_ranks(drawn), y=costs, mode="lines+markers", name="cost"))
    figure.update_yaxes(rangemode="tozero")
    return _laid_out(figure, "cost per million rows")


def _ranks(drawn: Drawn) -> list[str]:
    return [f"{point.ranks:,}" for point, _ in drawn]


def _laid_out(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(height=360, margin={"t": 30, "b": 50, "l": 70, "r": 20}, hovermode="x")
    figure.update_xaxes(type="category", title="ranks")
    figure.update_yaxes(title=title)
    return figure


def _grid(points: Sequence[ScalePoint]) -> Grid:
    parts = shown_parts(points)
    rows = []
    for point in points:
        step = point.step
        rows.append(
            [
                f"{point.ranks:,}",
                f"{point.size.batch_size:,}",
                number_text(point.rows_per_s, ",.0f"),
                number_text(point.efficiency, ".1%"),
                number_text(None if step is None else step.step_ms, ".3f"),
                *(number_text(None if step is None else part_ms(step, field), ".3f") for field in parts.values()),
                "does not fit" if step is None else step.binds,
                number_text(point.cost_per_million_rows, ".4g"),
            ]
        )
    header = ["ranks", "batch", "rows/s", "efficiency", "step ms", *parts, "binds", "cost per million rows"]
    return Grid(header, rows)
