"""A run's metrics as one HTML page, with the parts that its model adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import plotly.graph_objects as go

from torchrec_xd.evaluation.findings import findings
from torchrec_xd.evaluation.metrics import Report
from torchrec_xd.reports.page import Grid, number_text, save_page

METRICS = ("auc", "gauc", "logloss", "ne", "calibration", "rows", "positives")


class ReportPart(Protocol):
    """What a model adds to the page: a diagnostic."""

    title: str
    reading: str

    def values(self) -> dict[str, Any]:
        """What was measured."""

    def parts(self, values: dict[str, Any]) -> list[str | Grid | go.Figure]:
        """The same, for the page."""


def save_report(
    path: Path, title: str, report: Report, further: Sequence[ReportPart] = (), doubts: Sequence[str] = ()
) -> None:
    """Write the page; `doubts` are what training said of its data."""
    parts: list[str | Grid | go.Figure] = ["# Metrics", _metrics("task", report["eval"])]
    parts += [f"Warning: {line}." for line in findings(report)]
    parts += [f"Warning of the training: {line}." for line in doubts]
    if report["unweighted"]:
        parts += ["# Metrics, every row counting once", _metrics("task", report["unweighted"])]
    for task, slices in report["slices"].items():
        for column, groups in slices.items():
            if groups:
                parts += [f"# {task} by {column}", _metrics(column, groups)]
    for each in further:
        parts += [f"# {each.title}", each.reading, *each.parts(each.values())]
    save_page(path, title, parts)


def _metrics(first: str, results: Mapping[str, Mapping[str, Any]]) -> Grid:
    lines = [[name, *(number_text(result[metric]) for metric in METRICS)] for name, result in results.items()]
    return Grid([first, *METRICS], lines)
