"""Are the predictions any use: metrics of the rows that were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.evaluation.row_quantities import Array, log_losses
from torchrec_xd.outputs import Output, task_rows
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema

ERRORS = 2.0
"""A log loss counts as above a constant's where it is so by more than this many standard errors of the difference."""


class ScoreMetrics(Diagnostic):
    """AUC, NE and calibration of some tasks; rows without the label are left out, row weights count.

    Args:
        schema: of the model.
        tasks: names of the tasks that the run is about.
    """

    name = "scores"
    title = "Predictions"
    reading = (
        "AUC .5 is chance; NE is the log loss over that of predicting the share of positives for every row: above 1 "
        "that constant is better. Of the rows that were read, by their weights; `evaluate` has all rows."
    )

    def __init__(self, schema: Schema, tasks: Sequence[str]) -> None:
        self.schema, self.index = schema, {task.name: i for i, task in enumerate(schema.tasks) if task.name in tasks}
        self.rows: dict[str, list[tuple[Array, ...]]] = {name: [] for name in self.index}

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch."""
        rows = task_rows(self.schema, batch)
        for name, i in self.index.items():
            own = rows[name]
            found = (
                output.score[name].detach().double(),
                batch.label_BT[own, i],
                batch.user_B[own],
                batch.weight_B[own],
            )
            self.rows[name].append(tuple(column.cpu().numpy() for column in found))

    def values(self) -> dict[str, Any]:
        """`tasks`: by name the metrics, and `excess`: log loss less that of a constant, with its `error`."""
        return {"tasks": {name: self._of(name) for name in self.index}}

    def _of(self, name: str) -> dict[str, Any]:
        score_R, label_R, user_R, weight_R = map(np.concatenate, zip(*self.rows[name], strict=True))
        known_R = ~np.isnan(label_R)
        score_R, label_R, user_R, weight_R = (each[known_R] for each in (score_R, label_R, user_R, weight_R))
        metrics = binary_metrics(score_R, label_R, user_R, weight_R).as_dict()
        found = {key: metrics[key] for key in ("auc", "ne", "calibration", "rows", "positives")}
        weight_R = weight_R.astype(np.float64)
        if metrics["ne"] is None:
            return {**found, "excess": None, "error": None}
        share = np.average(label_R, weights=weight_R)
        excess_R = log_losses(score_R, label_R) - log_losses(np.full(len(label_R), share), label_R)
        excess = float(np.average(excess_R, weights=weight_R))
        error = float(np.sqrt(np.square(weight_R * (excess_R - excess)).sum()) / weight_R.sum())
        return {**found, "excess": excess, "error": error}

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """Tasks whose predictions are worse than a constant."""
        return [
            Finding(
                "worse_than_constant",
                f"{name}: NE {task['ne']:.3f} over {task['rows']:,} rows, above 1 by more than {ERRORS:g} standard "
                "errors. At 1 a model does as well as the share of positives, predicted for every row: above that its "
                "probabilities mislead, whatever they rank well",
                f"look at calibration ({task['calibration']:.2f}, 1 is right): far from 1, rows were sampled and "
                "training did not use their weights (trainer.weighted: true), or scores are no probabilities (P of "
                "EXIT adds interests to a P_t that has learnt them: rank by P, read P_t); near 1, lower learning "
                "rates or fewer epochs",
            )
            for name, task in values["tasks"].items()
            if task["excess"] is not None and task["excess"] > ERRORS * task["error"]
        ]

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A line per task."""
        lines = [
            [
                name,
                f"{task['rows']:,}",
                f"{task['positives']:,}",
                *(text(task[key]) for key in ("auc", "ne", "calibration")),
            ]
            for name, task in values["tasks"].items()
        ]
        return [Grid(["task", "rows", "positives", "AUC", "NE", "calibration"], lines)]
