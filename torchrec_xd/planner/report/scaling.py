"""How training scales: as a terminal table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.step.estimate import Precision, StepEstimate
from torchrec_xd.planner.step.scaling import ScalePoint

PARTS = {
    "lookups": "lookups_ms",
    "exchange": "exchange_ms",
    "dense": "dense_ms",
    "all-reduce": "exposed_ms",
    "launches": "launches_ms",
    "input": "input_ms",
    "reader": "reader_ms",
}
"""Heading to the field of a `StepEstimate`, in ms; of the all-reduce what is not hidden."""


def shown_parts(points: Sequence[ScalePoint]) -> dict[str, str]:
    """`PARTS`, without the reader where its speed was not given."""
    read = any(point.step is not None and point.step.reader_ms for point in points)
    return {name: field for name, field in PARTS.items() if read or name != "reader"}


def scale_view(points: Sequence[ScalePoint]) -> Table:
    """A line per size."""
    same = len({point.size.batch_size for point in points}) == 1
    batch = f", {points[0].size.batch_size:,} rows per rank" if same else ""
    view = Table(title=f"Estimated training: ms per step{batch}", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    parts, priced = shown_parts(points), points[0].size.cluster.price_per_hour is not None
    for heading in ("ranks", *(() if same else ("batch",)), "rows/s", "eff.", "step", *parts):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("binds", no_wrap=True)
    if priced:
        view.add_column("cost/M rows", justify="right", no_wrap=True)
    for point in points:
        at = [f"{point.ranks:,}", *([] if same else [f"{point.size.batch_size:,}"])]
        if point.step is None:
            view.add_row(*at, *[""] * (3 + len(parts)), "does not fit", style="dim")
            continue
        cost = point.cost_per_million_rows
        view.add_row(
            *at,
            f"{point.rows_per_s:,.0f}",
            f"{point.efficiency:.0%}",
            f"{point.step.step_ms:.2f}",
            *(f"{part_ms(point.step, field):.2f}" for field in parts.values()),
            point.step.binds,
            *([] if cost is None else [f"{cost:.4f}"]),
        )
    return view


def part_ms(step: StepEstimate, field: str) -> float:
    """One of `PARTS`."""
    value: float = getattr(step, field)
    return value


def assumptions(cluster: Cluster, precision: Precision) -> list[str]:
    """What the estimate rests on, in sentences."""
    costs = f"measured on {cluster.calibration.machine}" if cluster.calibration else "torchrec's constants"
    overlap = (
        "Launches, input and reading run at the same time as the device, and the all-reduce at the same time as the "
        "backward pass: the slowest of them is the step."
        if cluster.device == "cuda"
        else "All parts are waited for, except for reading."
    )
    return [
        f"An estimate, no measurement. Matrix products in {precision}, at {cluster.gemm_efficiency:.0%} of the "
        f"profile's TFLOP/s; {cluster.launch_us:g} µs per launch; lookups: {costs}.",
        f"{overlap} Latency of collectives and slow ranks are not modelled: at many ranks this is an upper bound.",
    ]


def scale_record(points: Sequence[ScalePoint], notes: Sequence[str]) -> dict[str, Any]:
    """For JSON."""
    return {
        "assumptions": list(notes),
        "sizes": [
            {
                "ranks": point.ranks,
                "batch_size": point.size.batch_size,
                "fits": point.step is not None,
                "reason": point.reason or None,
                "rows_per_s": point.rows_per_s,
                "efficiency": point.efficiency,
                "cost_per_million_rows": point.cost_per_million_rows,
                "step": None if point.step is None else asdict(point.step),
            }
            for point in points
        ],
    }
