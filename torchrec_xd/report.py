"""A run's report as one HTML page: its metrics and, for EXIT, what passes from the sources, scene by scene.

Shape legend: B rows of the target domain, V values of a scene feature, H bins of a histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from torchrec_xd.page import Grid, save_page
from torchrec_xd.statistics import Array, log_losses

if TYPE_CHECKING:
    from torchrec_xd.metrics import Report

NUM_BINS = 20
HURT_NATS = 0.1
"""A row counts as hurt where adding the sources' interest costs more log likelihood than this."""
LARGEST = 30
"""Values of a scene that are shown: the most frequent."""
METRICS = ("auc", "gauc", "logloss", "ne", "calibration", "rows", "positives")


class TransferTally:
    """Sums over rows of what EXIT transfers, per value of every scene feature; memory does not grow with the rows.

    Args:
        sources: names, in the order of `update`'s columns.
        scenes: scene feature -> rows of its table.
    """

    def __init__(self, sources: Sequence[str], scenes: Mapping[str, int]) -> None:
        self.sources, self.scenes = tuple(sources), dict(scenes)
        self.histogram = {scene: np.zeros((len(sources), size, NUM_BINS)) for scene, size in scenes.items()}
        self.sums = {scene: np.zeros((size, len(COLUMNS))) for scene, size in scenes.items()}

    def update(self, transfer_BK: Array, alone_B: Array, whole_B: Array, rows: Mapping[str, Array]) -> None:
        """Add rows: `P_tr` of each source, `P_t`, untruncated `P`; columns `label`, `weight`, scenes (-1: unknown)."""
        gain_B = log_losses(alone_B, rows["label"]) - log_losses(whole_B, rows["label"])
        weight_B, positive_B = rows["weight"].astype(np.float64), rows["label"] == 1
        columns = [
            np.ones_like(weight_B),
            positive_B,
            (gain_B > HURT_NATS),
            (gain_B < -HURT_NATS),
            gain_B * positive_B,
            gain_B * ~positive_B,
            weight_B,
            weight_B * gain_B,
            transfer_BK.mean(axis=1),
        ]
        bin_BK = np.minimum((transfer_BK * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        for scene, size in self.scenes.items():
            known_B = rows[scene] >= 0
            value_B = rows[scene][known_B].astype(np.int64)
            for place, column in enumerate(columns):
                self.sums[scene][:, place] += np.bincount(value_B, column[known_B], minlength=size)
            for k in range(len(self.sources)):
                cell_B = value_B * NUM_BINS + bin_BK[known_B, k]
                self.histogram[scene][k] += np.bincount(cell_B, minlength=size * NUM_BINS).reshape(size, NUM_BINS)

    def parts(self) -> list[str | Grid | go.Figure]:
        """The report's part on transfer."""
        found: list[str | Grid | go.Figure] = [
            "# What passes from the sources, and where it hurts",
            "P = P_t + sum of P_s P_tr. The bands show how the transfer probability P_tr is spread over the rows of a "
            "scene. The tables compare the log likelihood of P (truncated to 1) with that of P_t alone: transfer can "
            "only raise a prediction, so it helps rows that are positive and costs the others. P learns the interest "
            "combination label, which counts more than what was bought: P is no calibrated probability of that.",
        ]
        for scene in self.scenes:
            order = np.argsort(-self.sums[scene][:, 0], kind="stable")
            shown = [value for value in order[:LARGEST] if self.sums[scene][value, 0]]
            found += [f"# By {scene}", *self._figures(scene, shown), self._grid(scene, shown)]
        return found

    def _figures(self, scene: str, shown: Sequence[Any]) -> list[go.Figure]:
        figures = []
        for k, source in enumerate(self.sources):
            count_VH = self.histogram[scene][k][shown]
            figure = go.Figure(
                go.Heatmap(
                    z=(count_VH / count_VH.sum(axis=1, keepdims=True)).T,
                    x=[str(value) for value in shown],
                    y=(np.arange(NUM_BINS) + 0.5) / NUM_BINS,
                    colorscale="Blues",
                    colorbar={"title": "share"},
                )
            )
            figure.update_layout(height=300, margin={"t": 30, "b": 40, "l": 60, "r": 20}, title=f"P_tr from {source}")
            figure.update_xaxes(title=scene, type="category")
            figure.update_yaxes(title="P_tr", range=[0, 1])
            figures.append(figure)
        return figures

    def _grid(self, scene: str, shown: Sequence[Any]) -> Grid:
        lines = []
        for value in shown:
            rows, positives, helped, hurt, gained, lost, weight, net, passed = self.sums[scene][value]
            negatives = rows - positives
            lines.append(
                [
                    str(value),
                    f"{rows:,.0f}",
                    f"{positives / rows:.3f}",
                    f"{passed / rows:.3f}",
                    f"{helped / rows:.3f}",
                    f"{hurt / rows:.3f}",
                    f"{gained / positives:+.4f}" if positives else "–",
                    f"{lost / negatives:+.4f}" if negatives else "–",
                    f"{net / weight:+.4f}" if weight else "–",
                ]
            )
        return Grid([scene, *COLUMNS[:2], "mean P_tr", *COLUMNS[2:6], "all rows, nats, weighted"], lines)


COLUMNS = (
    "rows",
    "positive",
    f"helped by > {HURT_NATS} nats",
    f"hurt by > {HURT_NATS} nats",
    "positives, nats",
    "negatives, nats",
    "weight",
    "weighted gain",
    "passed",
)


def save_report(path: Path, title: str, report: Report, tally: TransferTally | None) -> None:
    """Write the page."""
    parts: list[str | Grid | go.Figure] = ["# Metrics", _metrics("task", report["eval"])]
    if report["unweighted"]:
        parts += ["# Metrics, every row counting once", _metrics("task", report["unweighted"])]
    for task, slices in report["slices"].items():
        for column, groups in slices.items():
            if groups:
                parts += [f"# {task} by {column}", _metrics(column, groups)]
    save_page(path, title, parts + (tally.parts() if tally is not None else []))


def _metrics(first: str, results: Mapping[str, Mapping[str, Any]]) -> Grid:
    lines = [[name, *(_text(result[metric]) for metric in METRICS)] for name, result in results.items()]
    return Grid([first, *METRICS], lines)


def _text(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
