"""What the interest combination labels of a data set look like: shares by split, scene and group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis
import plotly.graph_objects as go
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.datasets.pipeline.dataset import LabelReport
from torchrec_xd.reports.page import Grid, save_page

FILES = ("labels.md", "labels.html")
LARGEST = 40
"""Values of a column that are shown, the most frequent ones."""


def label_counts(rows: Table, report: LabelReport, by: Value) -> list[dict[str, Any]]:
    """How often each label occurs, for every value of `by`, the most frequent first.

    Returns:
        Dicts of value, rows, acted (rows with `y_t` = 1), icl_0 … icl_K+1 (rows by their label), and for the k-th
        source, from 0 on, wanted_k (rows with `y_s` = 1) and fit_k (those of them with `c` = 1).
    """
    acted = rows[report.acted].cast("int64")
    icl = acted
    sums: dict[str, Value] = {}
    for k, (wanted, fit) in enumerate(report.sources.values()):
        both = (rows[wanted] * rows[fit]).cast("int64")
        icl = icl + both
        sums |= {f"wanted_{k}": rows[wanted].cast("int64").sum(), f"fit_{k}": both.sum()}
    labels = {f"icl_{label}": (icl == label).sum() for label in range(len(report.sources) + 2)}
    counts = rows.group_by(value=by).agg(rows=_.count(), acted=acted.sum(), **labels, **sums)
    found: list[dict[str, Any]] = counts.order_by(counts.rows.desc(), counts.value).to_pyarrow().to_pylist()
    return found


def write_label_report(rows: Table, report: LabelReport, folder: Path, title: str) -> str:
    """Write `FILES` into `folder`; returns the first table, for the screen."""
    parts: list[str | Grid | go.Figure] = [
        "An interest combination label counts the fitting interests of a row: its own action in the target domain, and "
        "those in source domains that the consistency test lets pass. Shares are of the rows as they lie in the files: "
        "sampled rows count once. Shares of fit are of rows with an interest in that source."
    ]
    grids = []
    for by, column in report.by:
        counts = label_counts(rows, report, rows[column])
        grids.append(_grid(by, counts[:LARGEST], report.sources))
        parts += [f"# By {by}", _figure(by, counts[:LARGEST], len(report.sources) + 2), grids[-1]]
        if len(counts) > LARGEST:
            parts.append(f"The {LARGEST} most frequent of {len(counts)} values.")
    texts = [part if isinstance(part, str) else part.markdown() for part in parts if not isinstance(part, go.Figure)]
    markdown = "\n\n".join(text.replace("# ", "## ", 1) if text.startswith("# ") else text for text in texts)
    (folder / FILES[0]).write_text(f"# {title}\n\n{markdown}\n", encoding="utf-8")
    save_page(folder / FILES[1], title, parts)
    return grids[0].markdown()


def _grid(by: str, counts: list[dict[str, Any]], sources: Mapping[str, Any]) -> Grid:
    num_labels = len(sources) + 2
    header = [by, "rows", *(f"label {label}" for label in range(num_labels))]
    header += [text for source in sources for text in (f"wanted in {source}", f"of these fit ({source})")]
    lines = []
    for row in counts:
        shares = [percent(row[f"icl_{label}"], row["rows"]) for label in range(num_labels)]
        for k in range(len(sources)):
            wanted, fit = row[f"wanted_{k}"], row[f"fit_{k}"]
            shares += [percent(wanted, row["rows"]), percent(fit, wanted)]
        lines.append([_text(row["value"]), f"{row['rows']:,}", *shares])
    return Grid(header, lines)


def percent(part: int, whole: int) -> str:
    """A share for people; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _figure(by: str, counts: list[dict[str, Any]], num_labels: int) -> go.Figure:
    values = [_text(row["value"]) for row in counts]
    bars = [
        go.Bar(name=f"label {label}", x=values, y=[100 * row[f"icl_{label}"] / row["rows"] for row in counts])
        for label in range(num_labels)
    ]
    figure = go.Figure(bars)
    figure.update_layout(barmode="stack", height=320, margin={"t": 20, "b": 40, "l": 60, "r": 20})
    figure.update_xaxes(title=by, type="category")
    figure.update_yaxes(title="% of rows", range=[0, 100])
    return figure


def labelled_rows(connection: Any, folder: Path, splits: tuple[str, ...]) -> Table:
    """The rows of a domain's folder, with their split."""
    return ibis.union(
        *(connection.read_parquet(f"{folder / split}/*.parquet").mutate(split=ibis.literal(split)) for split in splits)
    )
