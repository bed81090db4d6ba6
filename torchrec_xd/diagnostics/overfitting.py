"""Does a joint model remember the target's rows: AUC on training rows against other rows, target against sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.selection import auc_with_error
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.outputs import Output, task_rows
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema

LOST = 0.05
"""AUC that the target loses from training rows to others, beyond what sources lose, from which on it counts: twice and
more what training on sources first wins on planted worlds."""
ERRORS = 2.0


class Overfitting(Diagnostic):
    """Per task, AUC on training rows and on those of the split; rows without the label are left out.

    Args:
        schema: of the model, with sources and targets.
    """

    name = "overfitting"
    title = "Training rows against others"
    reading = (
        "What AUC loses from training rows to these was remembered, not learnt; small domains lose most, as a joint "
        "model sees their rows as often as they need only if the others are learnt first."
    )
    reads_training = True

    def __init__(self, schema: Schema) -> None:
        self.schema, self.targets = schema, set(schema.targets())
        self.rows: dict[str, list[tuple[Array, Array, Array]]] = {task.name: [] for task in schema.tasks}
        self.training: dict[str, list[tuple[Array, Array, Array]]] = {task.name: [] for task in schema.tasks}

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch."""
        self._keep(self.rows, batch, output)

    def update_training(self, batch: Batch, output: Output) -> None:
        """Add a batch of training rows."""
        self._keep(self.training, batch, output)

    def _keep(self, rows: dict[str, list[tuple[Array, Array, Array]]], batch: Batch, output: Output) -> None:
        own = task_rows(self.schema, batch)
        for i, task in enumerate(self.schema.tasks):
            label_B = batch.label_BT[own[task.name], i].cpu().numpy()
            score_B = output.score[task.name].detach().double().cpu().numpy()
            weight_B = batch.weight_B[own[task.name]].cpu().numpy()
            known_B = ~np.isnan(label_B)
            rows[task.name].append((score_B[known_B], label_B[known_B], weight_B[known_B]))

    def values(self) -> dict[str, Any]:
        """`tasks`: by name `target` (true or false), and of both kinds of rows `auc` with its `error`, or null."""
        return {
            "tasks": {
                task.name: {
                    "target": task.domain in self.targets,
                    "training": _quality(self.training[task.name]),
                    "here": _quality(self.rows[task.name]),
                }
                for task in self.schema.tasks
            }
        }

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """Target tasks that lose more than sources do."""
        known = {name: task for name, task in values["tasks"].items() if task["training"] and task["here"]}
        sources = [task for task in known.values() if not task["target"]]
        if not sources:
            return []
        usual, their_error = max(map(_lost, sources))
        found = []
        for name, task in known.items():
            lost, error = _lost(task)
            error = (error**2 + their_error**2) ** 0.5
            if task["target"] and lost - usual > max(LOST, ERRORS * error):
                found.append(
                    Finding(
                        "target_overfitted",
                        f"{name}: AUC {task['training']['auc']:.3f} on training rows and {task['here']['auc']:.3f} on "
                        f"these, {lost:.3f} less, where sources lose {usual:.3f} at most: {LOST} more (and "
                        f"{ERRORS:g} standard errors, {ERRORS * error:.3f}) is twice and more what training on sources "
                        "first wins on planted worlds (.009 to .019)",
                        "sources first: loader.curriculum: [{epochs: 1, shares: sources}]; early stopping "
                        "(trainer.patience), a lower optimizer.tables.lr, model.dropout",
                    )
                )
        return found

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A line per task."""
        lines = [
            [
                name,
                "target" if task["target"] else "source",
                *(text(task[key] and task[key]["auc"]) for key in ("training", "here")),
            ]
            for name, task in values["tasks"].items()
        ]
        return [Grid(["task", "domain", "AUC, training", "AUC"], lines)]


def overfitting(schema: Schema) -> list[Diagnostic]:
    """Of a model that is trained on all domains of a schema: none without sources and targets to compare."""
    targets = set(schema.targets())
    return [Overfitting(schema)] if targets and targets != set(schema.domains) else []


def _quality(rows: Sequence[tuple[Array, Array, Array]]) -> dict[str, Any] | None:
    if not rows:
        return None
    return auc_with_error(*map(np.concatenate, zip(*rows, strict=True)))


def _lost(task: dict[str, Any]) -> tuple[float, float]:
    """What AUC loses from training rows to others, and its standard error."""
    error = (task["training"]["error"] ** 2 + task["here"]["error"] ** 2) ** 0.5
    return task["training"]["auc"] - task["here"]["auc"], error
