"""EXIT: the transfer probability by source and scene, and against the truth where the rows carry it.

Shape legend: B rows of the target domain in a batch, R such rows in all, K sources, S scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from torchrec_xd.batch import Batch
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.diagnostics.distribution import Distribution, histogram_figure, laid_out, text
from torchrec_xd.models.exit import ExitSettings
from torchrec_xd.models.task import Output, task_rows
from torchrec_xd.page import Grid
from torchrec_xd.schema import Feature, Schema, Split
from torchrec_xd.statistics import Array

BINS = 20
RELIABILITY_BINS = 10
LARGEST = 30
"""Values of a scene that the page shows, the most frequent ones."""
TRUTH = "prob_transfer"
"""Column of the true transfer probability where there is one source; `prob_transfer_<source>` where there are more."""


class TransferProbabilities:
    """`P_tr` of the target's rows.

    Args:
        schema: of the model.
        settings: of the model.
        truth: source to the column of its true transfer probability, as `true_columns` finds them. Batches carry
            these as their last dense columns (`with_truth`) and the scenes as extra columns (`scenes`).
    """

    name = "transfer"
    title = "EXIT's transfer probability"
    reading = (
        "P_tr is the share of a source interest that is let through; where the truth is known, a correlation near 1 "
        "says that the right rows are let through, the reliability table whether as much of them as should be."
    )

    def __init__(self, schema: Schema, settings: ExitSettings, truth: Mapping[str, str]) -> None:
        self.schema, self.settings, self.truth = schema, settings, dict(truth)
        self.scenes = scenes(schema)
        self.tasks = [task.name for task in schema.tasks]
        self.rows: dict[str, list[Array]] = {}

    def update(self, batch: Batch, output: Output) -> None:
        """Add a batch."""
        own = task_rows(self.schema, batch)[self.settings.target]
        true_BK = batch.dense_BN[own, batch.dense_BN.shape[1] - len(self.truth) :]
        columns = {f"scene/{scene}": batch.extra_BK[own, s] for s, scene in enumerate(self.scenes)}
        columns |= {f"true/{source}": true_BK[:, k] for k, source in enumerate(self.truth)}
        for name, source in self.settings.sources.items():
            columns[f"said/{name}"] = output.score[source.fit].detach()
            columns[f"wanted/{name}"] = batch.label_BT[own, self.tasks.index(source.wanted)]
        for key, column_B in columns.items():
            self.rows.setdefault(key, []).append(column_B.cpu().numpy())

    def values(self) -> dict[str, Any]:
        """`sources`: by name `distribution`, `truth`, `reliability` (both null where it is unknown), `scenes`."""
        rows = {key: np.concatenate(parts) for key, parts in self.rows.items()}
        return {"sources": {name: self._of(name, rows) for name in self.settings.sources}}

    def _of(self, source: str, rows: Mapping[str, Array]) -> dict[str, Any]:
        said_R, true_R = rows[f"said/{source}"].astype(np.float64), rows.get(f"true/{source}")
        spread = Distribution(0, 1, BINS)
        spread.add(torch.from_numpy(said_R))
        found: dict[str, Any] = {"distribution": spread.summary(), "truth": None, "reliability": None}
        if true_R is not None:
            true_R = true_R.astype(np.float64)
            wanted_R = rows[f"wanted/{source}"] == 1
            found["truth"] = {
                "all": agreement(said_R, true_R),
                "wanted": agreement(said_R[wanted_R], true_R[wanted_R]),
            }
            found["reliability"] = reliability(said_R, true_R)
        found["scenes"] = {scene: scene_means(rows[f"scene/{scene}"], said_R, true_R) for scene in self.scenes}
        return found

    def parts(self, values: dict[str, Any]) -> list[str | Grid | go.Figure]:
        """The distributions, then source by source what is true and what the scenes differ in."""
        sources = values["sources"]
        found: list[str | Grid | go.Figure] = [
            histogram_figure({name: said["distribution"] for name, said in sources.items()}, "P_tr")
        ]
        for name, said in sources.items():
            if said["truth"] is not None:
                found += _truth_parts(name, said)
            for scene, lines in said["scenes"].items():
                shown = sorted(lines, key=lambda line: -line["rows"])[:LARGEST]
                texts = [[str(v["value"]), f"{v['rows']:,}", text(v["mean"]), text(v["true_mean"])] for v in shown]
                header = [scene, "rows", f"mean P_tr from {name}", "mean of the truth"]
                found += [f"By {scene}, from {name}:", Grid(header, texts)]
        return found


def _truth_parts(source: str, said: Mapping[str, Any]) -> list[str | Grid | go.Figure]:
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
        for key, a in said["truth"].items()
    ]
    bins = [b for b in said["reliability"] if b["rows"]]
    lines = [
        [f"{b['low']:.1f} to {b['high']:.1f}", f"{b['rows']:,}", text(b["mean"]), text(b["true_mean"])] for b in bins
    ]
    diagonal = go.Scatter(name="as it should be", x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot"})
    points = go.Scatter(
        name=source, x=[b["mean"] for b in bins], y=[b["true_mean"] for b in bins], mode="lines+markers"
    )
    header = [f"P_tr from {source}", "rows", "correlation", "RMSE", "mean P_tr", "mean of the truth"]
    return [
        Grid(header, agreed),
        laid_out(go.Figure([diagonal, points]), "mean P_tr", "mean of the truth"),
        Grid([f"P_tr from {source}", "rows", "mean P_tr", "mean of the truth"], lines),
    ]


def agreement(said_R: Array, true_R: Array) -> dict[str, Any]:
    """Pearson's correlation and root mean squared error; None where there are no rows, or one side is constant."""
    if not len(said_R):
        return {"rows": 0, "correlation": None, "rmse": None, "mean": None, "true_mean": None}
    varies = np.ptp(said_R) > 0 and np.ptp(true_R) > 0
    return {
        "rows": len(said_R),
        "correlation": float(np.corrcoef(said_R, true_R)[0, 1]) if varies else None,
        "rmse": float(np.sqrt(np.mean((said_R - true_R) ** 2))),
        "mean": float(said_R.mean()),
        "true_mean": float(true_R.mean()),
    }


def reliability(said_R: Array, true_R: Array) -> list[dict[str, Any]]:
    """Rows, mean of `P_tr` and mean of the truth in equal bins of `P_tr` from 0 to 1."""
    bin_R = np.minimum((said_R * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    bins = _means(bin_R, said_R, true_R, RELIABILITY_BINS)
    return [
        {"low": line.pop("value") / RELIABILITY_BINS, "high": (i + 1) / RELIABILITY_BINS, **line}
        for i, line in enumerate(bins)
    ]


def scene_means(scene_R: Array, said_R: Array, true_R: Array | None) -> list[dict[str, Any]]:
    """Rows and means of every value of a scene that occurs; -1, unknown, is left out."""
    known_R = scene_R >= 0
    given = scene_R[known_R], said_R[known_R], None if true_R is None else true_R[known_R]
    size = int(scene_R.max(initial=-1)) + 1
    return [line for line in _means(*given, size) if line["rows"]]


def _means(value_R: Array, said_R: Array, true_R: Array | None, size: int) -> list[dict[str, Any]]:
    rows = np.bincount(value_R, minlength=size)
    columns = [said_R] if true_R is None else [said_R, true_R]
    mean, *true = [np.bincount(value_R, column, minlength=size) / np.maximum(rows, 1) for column in columns]
    return [
        {
            "value": value,
            "rows": int(rows[value]),
            "mean": float(mean[value]) if rows[value] else None,
            "true_mean": float(true[0][value]) if true and rows[value] else None,
        }
        for value in range(size)
    ]


def scenes(schema: Schema) -> tuple[str, ...]:
    """The scene features whose values can be told apart: ids that are not hashed."""
    return tuple(f.column for f in schema.features if (f.group, f.kind, f.hash) == ("scene", "id", "none"))


def true_columns(schema: Schema, settings: ExitSettings, split: Split) -> dict[str, str]:
    """Source to the column of its true transfer probability, of those that all files of the target's split have."""
    names: list[set[str]] = []
    domain = settings.target.rpartition("@")[2]
    ParquetFiles(schema.domains[domain].paths(split), schema.root, lambda _, found: names.append(set(found.names)))
    there = set.intersection(*names) if names else set()
    several = len(settings.sources) > 1
    columns = {source: f"{TRUTH}_{source}" if several else TRUTH for source in settings.sources}
    return {source: column for source, column in columns.items() if column in there}


def with_truth(schema: Schema, settings: ExitSettings, truth: Mapping[str, str]) -> Schema:
    """The schema whose batches carry the truth as their last dense columns; the model must not see these."""
    domain = settings.target.rpartition("@")[2]
    columns = [Feature(column=column, kind="dense", group="context", domains=(domain,)) for column in truth.values()]
    return schema.model_copy(update={"features": (*schema.features, *columns)})
