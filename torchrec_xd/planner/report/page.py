"""A plan as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from torchrec_xd.planner.inputs.cluster import GIB
from torchrec_xd.planner.plan import Plan, PlannedTable
from torchrec_xd.planner.report.console import ranks_text
from torchrec_xd.planner.search.candidates import Floats
from torchrec_xd.reports.page import Grid, save_page

TABLES_SHOWN = 300
"""Keeps the page of thousands of tables small."""
SPEEDS = {"half as fast": 0.5, "twice as fast": 2.0}
COMPUTE, EXCHANGE, MEMORY, LIMIT = "#2f6fb0", "#e0a33a", "#5b9a68", "#1c2733"
"""Colours."""


def save_plan_page(plan: Plan, path: Path) -> None:
    """Write the page."""
    cluster = plan.cluster
    order = sorted(range(cluster.world_size), key=lambda rank: -plan.rank_ms[rank])
    parts: list[str | Grid | go.Figure] = [
        _facts(plan),
        "# Time per rank",
        "Estimated time of the embeddings in one step, slowest rank first. No plan has a slowest rank below the dashed "
        "line.",
        _time_figure(plan, order),
        "# Memory per rank",
        "Weights, optimizer state and buffers, in the same order of ranks. Tables may fill a rank up to the dashed "
        "line.",
        *_memory_figures(plan, order),
        "# On another cluster",
        "This plan's estimates if lookups, the network or memory were different. Another plan may be better there: "
        "plan again for the other cluster.",
        _what_if(plan),
        "# Shards per table",
        _shards_grid(plan),
        "# Tables",
        *_tables(plan),
    ]
    save_page(path, f"Sharding plan: {len(plan.tables)} tables on {cluster.world_size} {cluster.device} ranks", parts)


def _facts(plan: Plan) -> str:
    cluster = plan.cluster
    costs = f"measured on {cluster.calibration.machine}" if cluster.calibration else "torchrec's constants"
    return (
        f"Slowest rank {plan.slowest_rank_ms:.3f} ms, lower bound {plan.lower_bound_ms:.3f} ms, gap at most "
        f"{plan.gap:.1%}. Cluster: {cluster.world_size} {cluster.device} ranks, {cluster.node_size} per node. Batch "
        f"size {plan.batch_size} per rank. Lookup costs: {costs}."
    )


def _time_figure(plan: Plan, order: Sequence[int]) -> go.Figure:
    figure = go.Figure()
    for name, values, color in (
        ("lookup and update", plan.rank_compute_ms, COMPUTE),
        ("exchange", plan.rank_comms_ms, EXCHANGE),
    ):
        figure.add_bar(**_bars(order, np.array(values)), name=name, marker_color=color, hovertemplate="%{y:.4f} ms")
    return _by_rank(figure, "ms", plan.lower_bound_ms, "lower bound")


def _memory_figures(plan: Plan, order: Sequence[int]) -> list[go.Figure]:
    """One figure for the device that holds the tables; on GPUs a second one where tables use host memory."""
    host = ("host memory", plan.rank_ddr, plan.cluster.ddr_bytes)
    kinds = [host]
    if plan.cluster.device == "cuda":
        kinds = [("HBM", plan.rank_hbm, plan.cluster.hbm_bytes), *([host] if any(plan.rank_ddr) else [])]
    figures = []
    for name, values, limit in kinds:
        bars = _bars(order, np.array(values) / GIB)
        figure = go.Figure().add_bar(**bars, name=name, marker_color=MEMORY, hovertemplate="%{y:.3f} GiB")
        figures.append(_by_rank(figure, f"{name}, GiB", limit / GIB, "limit"))
    return figures


def _bars(order: Sequence[int], values: Floats) -> dict[str, object]:
    return {"x": [str(rank) for rank in order], "y": np.round(values[list(order)], 6), "marker_line_width": 0}


def _by_rank(figure: go.Figure, title: str, line: float, line_name: str) -> go.Figure:
    """Stacked bars with a dashed line across."""
    figure.add_hline(y=line, line={"dash": "dash", "color": LIMIT}, annotation_text=line_name)
    figure.update_layout(
        barmode="stack",
        bargap=0.1,
        height=320,
        hovermode="x",
        margin={"t": 40, "b": 45, "l": 60, "r": 20},
        showlegend=len(figure.data) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(type="category", title="rank", nticks=32)
    figure.update_yaxes(title=title, rangemode="tozero")
    return figure


def _what_if(plan: Plan) -> Grid:
    compute, comms, cluster = np.array(plan.rank_compute_ms), np.array(plan.rank_comms_ms), plan.cluster
    scenarios = [
        *((f"lookups {name}", compute / speed + comms, 1.0) for name, speed in SPEEDS.items()),
        *((f"network {name}", compute + comms / speed, 1.0) for name, speed in SPEEDS.items()),
        ("half the memory", compute + comms, 0.5),
    ]
    rows = []
    for name, rank_ms, size in scenarios:
        slowest = float(rank_ms.max())
        change = slowest / plan.slowest_rank_ms - 1 if plan.slowest_rank_ms else 0.0
        full = np.array(plan.rank_hbm) > size * cluster.hbm_bytes
        full |= np.array(plan.rank_ddr) > size * cluster.ddr_bytes
        rows.append([name, f"{slowest:.3f}", f"{change:+.1%}", f"{int(full.sum()):,}"])
    return Grid(["cluster", "slowest rank ms", "change", "ranks over their limit"], rows)


def _shards_grid(plan: Plan) -> Grid:
    """How many tables are cut into how many shards, by sharding type."""
    groups: dict[tuple[str, int], list[PlannedTable]] = {}
    for table in plan.tables:
        groups.setdefault((table.sharding_type, _shards(plan, table)), []).append(table)
    rows = [
        [
            *(kind, f"{shards:,}", f"{len(tables):,}"),
            *(f"{sum(t.hbm for t in tables) / GIB:.3f}", f"{sum(t.ddr for t in tables) / GIB:.3f}"),
            f"{sum(t.ms for t in tables):.3f}",
        ]
        for (kind, shards), tables in sorted(groups.items())
    ]
    return Grid(["sharding type", "shards per table", "tables", "HBM GiB", "DDR GiB", "ms"], rows)


def _shards(plan: Plan, table: PlannedTable) -> int:
    return plan.cluster.world_size if table.ranks == "all" else len(table.ranks)


def _tables(plan: Plan) -> list[str | Grid]:
    slowest_first = sorted(plan.tables, key=lambda table: -table.ms)
    shown, rest = slowest_first[:TABLES_SHOWN], slowest_first[TABLES_SHOWN:]
    text = "By estimated time of all shards in one step."
    if rest:
        text += (
            f" {len(rest):,} more tables are not shown; they take {sum(table.ms for table in rest):.3f} of "
            f"{sum(table.ms for table in plan.tables):.3f} ms. The plan file has all tables."
        )
    rows = [
        [
            *(table.fqn, f"{table.rows:,}", str(table.dim), table.sharding_type, table.kernel_text),
            *(f"{_shards(plan, table):,}", ranks_text(table)),
            *(f"{table.hbm / GIB:.3f}", f"{table.ddr / GIB:.3f}", f"{table.ms:.4f}"),
        ]
        for table in shown
    ]
    header = ["table", "rows", "dim", "sharding type", "kernel", "shards", "ranks", "HBM GiB", "DDR GiB", "ms"]
    return [text, Grid(header, rows)]
