"""EXIT: the transfer probability, against the truth where the rows carry it, and by scene.

Shape legend: B rows of the target domain in a batch, R such rows in all, K sources, V values of a scene feature,
H bins of a histogram, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from torchrec_xd.batch import Batch
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import Distribution, histogram_figure, laid_out, text
from torchrec_xd.evaluation.row_quantities import Array, log_losses
from torchrec_xd.feature import Feature
from torchrec_xd.outputs import Output, task_rows
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema, Split

BINS = 20
RELIABILITY_BINS = 10
LARGEST = 30
"""Values of a scene that the page shows, the most frequent ones."""
HURT_NATS = 0.1
"""A row counts as hurt where adding the sources' interest costs more log likelihood than this."""
TRUTH = "prob_transfer"
"""Column of the true transfer probability where there is one source; `prob_transfer_<source>` where there are more."""


class TransferProbabilities(Diagnostic):
    """`P_tr` of the target's rows.

    Args:
        schema: of the model.
        target: the target task.
        sources: by name, the task of the interest in the source and the task of the transfer probability.
    """

    name = "transfer"
    title = "EXIT's transfer probability"
    reading = (
        "P_tr is the share of a source interest that is let through; where the truth is known, a correlation near 1 "
        "means that the right rows are let through, the reliability table shows whether as much of them as should be."
    )

    def __init__(self, schema: Schema, target: str, sources: Mapping[str, tuple[str, str]]) -> None:
        self.schema, self.target, self.sources = schema, target, dict(sources)
        self.tasks = [task.name for task in schema.tasks]
        self.rows: dict[str, list[Array]] = {}

    def number_features(self, split: Split) -> tuple[Feature, ...]:
        """The true transfer probabilities that the split's rows carry."""
        return true_probabilities(self.schema, self.target, tuple(self.sources), split)

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch."""
        own, truth = task_rows(self.schema, batch)[self.target], truth_columns(tuple(self.sources))
        for name, (wanted, fit) in self.sources.items():
            found = {
                f"predicted/{name}": output.score[fit].detach(),
                f"wanted/{name}": batch.label_BT[own, self.tasks.index(wanted)],
            }
            if truth[name] in columns:
                found[f"true/{name}"] = columns[truth[name]][own]
            for key, column_B in found.items():
                self.rows.setdefault(key, []).append(column_B.cpu().numpy())

    def values(self) -> dict[str, Any]:
        """`sources`: by name `distribution`, `truth` and `reliability` (both null where the truth is unknown)."""
        rows = {key: np.concatenate(parts) for key, parts in self.rows.items()}
        return {"sources": {name: self._of(name, rows) for name in self.sources}}

    def _of(self, source: str, rows: Mapping[str, Array]) -> dict[str, Any]:
        predicted_R, true_R = rows[f"predicted/{source}"].astype(np.float64), rows.get(f"true/{source}")
        spread = Distribution(0, 1, BINS)
        spread.add(torch.from_numpy(predicted_R))
        if true_R is None:
            return {"distribution": spread.summary(), "truth": None, "reliability": None}
        true_R, wanted_R = true_R.astype(np.float64), rows[f"wanted/{source}"] == 1
        truth = {
            "all": agreement(predicted_R, true_R),
            "wanted": agreement(predicted_R[wanted_R], true_R[wanted_R]),
        }
        return {
            "distribution": spread.summary(),
            "truth": truth,
            "reliability": reliability(predicted_R, true_R),
        }

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """The distributions, then how they agree with the truth, source by source."""
        sources = values["sources"]
        found: list[Part] = [
            histogram_figure({name: source["distribution"] for name, source in sources.items()}, "P_tr")
        ]
        for name, source in sources.items():
            if source["truth"] is not None:
                found += _truth_parts(name, source)
        return found


class TransferByScene(Diagnostic):
    """What passes from the sources in every scene, and where it hurts; memory does not grow with the rows.

    Args:
        schema: of the model.
        target: the target task.
        alone: auxiliary score of the target tower alone, `P_t`.
        fit: source to the task of its transfer probability.
        truth: whether to read the true transfer probabilities too, where rows carry them.
    """

    name = "transfer_by_scene"
    title = "What passes from the sources, and where it hurts"
    reading = (
        "P = P_t + sum of P_s P_tr. The bands show how the transfer probability P_tr is spread over the rows of a "
        "scene. The tables compare the log likelihood of P (truncated to 1) with that of P_t alone: transfer can "
        "only raise a prediction, so it helps rows that are positive and costs the others. P learns the interest "
        "combination label, which counts more than what was bought: P is no calibrated probability of that."
    )

    def __init__(self, schema: Schema, target: str, alone: str, fit: Mapping[str, str], *, truth: bool = False) -> None:
        self.schema, self.target, self.alone, self.fit, self.truth = schema, target, alone, dict(fit), truth
        self.label = [task.name for task in schema.tasks].index(target)
        # Scenes whose values can be told apart: ids that are not hashed.
        self.scenes = {
            f.column: f.rows or 0 for f in schema.features if (f.group, f.kind, f.hash) == ("scene", "id", "none")
        }
        k = len(fit)
        self.histogram_KVH = {scene: np.zeros((k, size, BINS)) for scene, size in self.scenes.items()}
        self.passed_KV = {scene: np.zeros((k, size)) for scene, size in self.scenes.items()}
        self.true_KV = {scene: np.zeros((k, size)) for scene, size in self.scenes.items()}
        self.sums_CV = {scene: np.zeros((len(SUMS), size)) for scene, size in self.scenes.items()}
        self.known: set[str] = set()

    def integer_columns(self) -> tuple[str, ...]:
        """The scenes."""
        return tuple(self.scenes)

    def number_features(self, split: Split) -> tuple[Feature, ...]:
        """The true transfer probabilities that the split's rows carry."""
        return true_probabilities(self.schema, self.target, tuple(self.fit), split) if self.truth else ()

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch."""
        own, truth = task_rows(self.schema, batch)[self.target], truth_columns(tuple(self.fit))
        label_B = batch.label_BT[own, self.label].cpu().numpy()
        weight_B = batch.weight_B[own].cpu().numpy().astype(np.float64)
        passed = [output.score[fit].detach().cpu().numpy() for fit in self.fit.values()]
        true = {source: columns[column][own].cpu().numpy() for source, column in truth.items() if column in columns}
        self.known |= true.keys()
        alone_B, whole_B = (output.score[name].detach().cpu().numpy() for name in (self.alone, self.target))
        gain_B, positive_B = log_losses(alone_B, label_B) - log_losses(whole_B, label_B), label_B == 1
        sums = [
            np.ones_like(weight_B),
            positive_B,
            gain_B > HURT_NATS,
            gain_B < -HURT_NATS,
            gain_B * positive_B,
            gain_B * ~positive_B,
            weight_B,
            weight_B * gain_B,
        ]
        for scene, size in self.scenes.items():
            value_B = columns[scene][own].cpu().numpy()
            known_B = value_B >= 0
            value_B = value_B[known_B].astype(np.int64)

            def add(total_V: Array, column_B: Array, value_B: Array = value_B, known_B: Array = known_B) -> None:
                total_V += np.bincount(value_B, column_B[known_B], minlength=len(total_V))

            for total_V, column_B in zip(self.sums_CV[scene], sums, strict=True):
                add(total_V, column_B)
            for k, (source, passed_B) in enumerate(zip(self.fit, passed, strict=True)):
                add(self.passed_KV[scene][k], passed_B)
                if source in true:
                    add(self.true_KV[scene][k], true[source])
                bin_B = np.minimum((passed_B[known_B] * BINS).astype(np.int64), BINS - 1)
                cells = np.bincount(value_B * BINS + bin_B, minlength=size * BINS)
                self.histogram_KVH[scene][k] += cells.reshape(size, BINS)

    def values(self) -> dict[str, Any]:
        """`scenes`: by name a list of the values that occur, each with `value`, `rows`, `sources` and gains."""
        return {"scenes": {scene: [self._of(scene, value) for value in self._values(scene)] for scene in self.scenes}}

    def _values(self, scene: str) -> list[int]:
        return [int(value) for value in np.flatnonzero(self.sums_CV[scene][0])]

    def _of(self, scene: str, value: int) -> dict[str, Any]:
        sums = dict(zip(SUMS, self.sums_CV[scene][:, value].tolist(), strict=True))
        rows, positives, weight = sums["rows"], sums["positives"], sums["weight"]
        negatives = rows - positives
        sources = {
            source: {
                "mean": float(self.passed_KV[scene][k, value] / rows),
                "true_mean": float(self.true_KV[scene][k, value] / rows) if source in self.known else None,
                "histogram": [int(count) for count in self.histogram_KVH[scene][k, value]],
            }
            for k, source in enumerate(self.fit)
        }
        return {
            "value": value,
            "rows": int(rows),
            "positive": positives / rows,
            "helped": sums["helped"] / rows,
            "hurt": sums["hurt"] / rows,
            "gain_of_positives": sums["gain_of_positives"] / positives if positives else None,
            "gain_of_negatives": sums["gain_of_negatives"] / negatives if negatives else None,
            "weighted_gain": sums["weighted_gain"] / weight if weight else None,
            "sources": sources,
        }

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """Scene by scene: a band per source, and a table."""
        found: list[Part] = []
        for scene, lines in values["scenes"].items():
            shown = sorted(lines, key=lambda line: -line["rows"])[:LARGEST]
            found += [f"# By {scene}", *(_band(scene, source, shown) for source in self.fit), self._grid(scene, shown)]
        return found

    def _grid(self, scene: str, shown: list[dict[str, Any]]) -> Grid:
        header = [scene, "rows", "positive", *(f"mean P_tr from {source}" for source in self.fit)]
        header += [f"true mean from {source}" for source in self.fit if source in self.known]
        header += [f"helped by > {HURT_NATS} nats", f"hurt by > {HURT_NATS} nats"]
        header += ["positives, nats", "negatives, nats", "all rows, nats, weighted"]
        lines = [
            [
                str(line["value"]),
                f"{line['rows']:,}",
                text(line["positive"], ".3f"),
                *(text(source["mean"], ".3f") for source in line["sources"].values()),
                *(text(line["sources"][source]["true_mean"], ".3f") for source in self.fit if source in self.known),
                text(line["helped"], ".3f"),
                text(line["hurt"], ".3f"),
                *(text(line[key], "+.4f") for key in ("gain_of_positives", "gain_of_negatives", "weighted_gain")),
            ]
            for line in shown
        ]
        return Grid(header, lines)


SUMS = (
    "rows",
    "positives",
    "helped",
    "hurt",
    "gain_of_positives",
    "gain_of_negatives",
    "weight",
    "weighted_gain",
)
"""What is summed by value of a scene."""


def _band(scene: str, source: str, shown: list[dict[str, Any]]) -> go.Figure:
    count_VH = np.array([line["sources"][source]["histogram"] for line in shown], dtype=np.float64).reshape(-1, BINS)
    figure = go.Figure(
        go.Heatmap(
            z=(count_VH / count_VH.sum(axis=1, keepdims=True)).T,
            x=[str(line["value"]) for line in shown],
            y=(np.arange(BINS) + 0.5) / BINS,
            colorscale="Blues",
            colorbar={"title": "share"},
        )
    )
    figure.update_layout(height=300, margin={"t": 30, "b": 40, "l": 60, "r": 20}, title=f"P_tr from {source}")
    figure.update_xaxes(title=scene, type="category")
    figure.update_yaxes(title="P_tr", range=[0, 1])
    return figure


def _truth_parts(source: str, found: Mapping[str, Any]) -> list[Part]:
    names = {"all": "all rows of the target", "wanted": "rows with an interest in the source"}
    agreed = [
        [
            names[key],
            f"{a['rows']:,}",
            text(a["correlation"]),
            text(a["rmse"]),
            text(a["mean"]),
            text(a["true_mean"]),
        ]
        for key, a in found["truth"].items()
    ]
    bins = [b for b in found["reliability"] if b["rows"]]
    lines = [
        [f"{b['low']:.1f} to {b['high']:.1f}", f"{b['rows']:,}", text(b["mean"]), text(b["true_mean"])] for b in bins
    ]
    diagonal = go.Scatter(name="perfectly calibrated", x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot"})
    points = go.Scatter(
        name=source, x=[b["mean"] for b in bins], y=[b["true_mean"] for b in bins], mode="lines+markers"
    )
    header = [f"P_tr from {source}", "rows", "correlation", "RMSE", "mean P_tr", "mean of the truth"]
    return [
        Grid(header, agreed),
        laid_out(go.Figure([diagonal, points]), "mean P_tr", "mean of the truth"),
        Grid([f"P_tr from {source}", "rows", "mean P_tr", "mean of the truth"], lines),
    ]


def agreement(predicted_R: Array, true_R: Array) -> dict[str, Any]:
    """Pearson's correlation and root mean squared error; None where there are no rows, or one side is constant."""
    if not len(predicted_R):
        return {"rows": 0, "correlation": None, "rmse": None, "mean": None, "true_mean": None}
    varies = np.ptp(predicted_R) > 0 and np.ptp(true_R) > 0
    return {
        "rows": len(predicted_R),
        "correlation": float(np.corrcoef(predicted_R, true_R)[0, 1]) if varies else None,
        "rmse": float(np.sqrt(np.mean((predicted_R - true_R) ** 2))),
        "mean": float(predicted_R.mean()),
        "true_mean": float(true_R.mean()),
    }


def reliability(predicted_R: Array, true_R: Array) -> list[dict[str, Any]]:
    """Rows, mean of `P_tr` and mean of the truth in equal bins of `P_tr` from 0 to 1."""
    bin_R = np.minimum((predicted_R * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    rows = np.bincount(bin_R, minlength=RELIABILITY_BINS)
    means = [
        np.bincount(bin_R, column_R, minlength=RELIABILITY_BINS) / np.maximum(rows, 1)
        for column_R in (predicted_R, true_R)
    ]
    return [
        {
            "low": i / RELIABILITY_BINS,
            "high": (i + 1) / RELIABILITY_BINS,
            "rows": int(rows[i]),
            "mean": float(means[0][i]) if rows[i] else None,
            "true_mean": float(means[1][i]) if rows[i] else None,
        }
        for i in range(RELIABILITY_BINS)
    ]


def truth_columns(sources: tuple[str, ...]) -> dict[str, str]:
    """Source to the column of its true transfer probability."""
    return {source: f"{TRUTH}_{source}" if len(sources) > 1 else TRUTH for source in sources}


def true_probabilities(schema: Schema, target: str, sources: tuple[str, ...], split: Split) -> tuple[Feature, ...]:
    """The columns of true transfer probabilities that all files of the target's split have."""
    domain, names = target.rpartition("@")[2], []
    ParquetFiles(schema.domains[domain].paths(split), schema.root, lambda _, found: names.append(set(found.names)))
    there = set.intersection(*names) if names else set()
    return tuple(
        Feature(column=column, kind="dense", group="context", domains=(domain,))
        for column in truth_columns(sources).values()
        if column in there
    )
