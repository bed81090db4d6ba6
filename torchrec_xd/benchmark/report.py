"""`report`: results of any benchmarks as one HTML page, tables and plots of cost against work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import plotly.graph_objects as go
import typer

from torchrec_xd.benchmark.history import read_result
from torchrec_xd.benchmark.measure import screen, short
from torchrec_xd.reports.page import Grid, save_page

WORK = ("ranks", "batch", "rows")
"""Keys of a `scale` result's points that can grow."""


def report(
    results: Annotated[list[Path], typer.Argument(help="JSON files that benchmarks wrote.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
) -> None:
    """Put results on one page, each with its settings and command; `scale` results are drawn."""
    parts: list[str | Grid | go.Figure] = []
    for path in results:
        content = read_result(path)
        settings = ", ".join(f"{key} {value}" for key, value in content["settings"].items())
        parts += [f"# {content['benchmark']}: {settings}", content["command"], _grid(content["rows"])]
        if content["benchmark"].startswith("scale"):
            parts.append(cost_figure(content))
    save_page(out, "Throughput", parts)
    screen.print(f"{out}: {len(results)} results", markup=False)


def cost_figure(content: dict[str, Any]) -> go.Figure:
    """Rows per second, median and range, from zero; over what grew, logarithmic."""
    points = content["rows"]
    grew = next(key for key in reversed(WORK) if len({point.get(key) for point in points}) > 1)
    speed = [point["rows/s"] for point in points]
    names = [", ".join(f"{key} {point[key]}" for key in point if key != "rows/s") for point in points]
    figure = go.Figure(
        go.Scatter(
            x=[int(point[grew]) for point in points],
            y=[found["median"] for found in speed],
            error_y={
                "array": [found["high"] - found["median"] for found in speed],
                "arrayminus": [found["median"] - found["low"] for found in speed],
            },
            text=names,
            mode="lines+markers",
        )
    )
    figure.update_xaxes(
        title={"rows": "rows of a table", "batch": "rows of a batch", "ranks": "ranks"}[grew], type="log"
    )
    figure.update_yaxes(title="rows per second", rangemode="tozero")
    figure.update_layout(height=380, margin={"t": 20, "b": 50, "l": 70, "r": 20})
    return figure


def _grid(rows: list[dict[str, Any]]) -> Grid:
    header = list(dict.fromkeys(key for row in rows for key in row))
    return Grid(header, [[_cell(row.get(key)) for key in header] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{short(value['median'])} ({short(value['low'])} to {short(value['high'])})"
    return "" if value is None else short(value) if isinstance(value, float) else str(value)
