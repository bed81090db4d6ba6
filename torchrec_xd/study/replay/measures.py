"""Metrics of every slice, by model, task, policy and seed, from the predictions that were made before training on it.

Shape legend: R rows of a task in a slice, U users so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.evaluation.spread_rows import Result
from torchrec_xd.schema import Schema
from torchrec_xd.study.replay.slices import Slice
from torchrec_xd.study.replay.steps import Step, Steps
from torchrec_xd.study.scores import Rows, read_scores, task_rows

FEW = 10
GROUPS = ("new", "few", "many")
"""Users by their rows in the domain's slices before: none, fewer than FEW, FEW or more."""
METRICS = ("auc", "gauc", "logloss", "ne", "calibration")


def measured(steps: Steps, done: Sequence[Step]) -> Iterator[dict[str, Any]]:
    """A line for every model, task, policy, seed and slice of steps that are done.

    The step of the warm-up, which all policies have in common, gives a line for each.
    """
    by_number: dict[int, list[Step]] = {}
    for step in done:
        by_number.setdefault(step.number, []).append(step)
    for domain in steps.schema.domains:
        so_far = _Users()
        for number, each in enumerate(steps.slices):
            if number in by_number:
                schema = _on(steps.schema, each)
                for task in (task.name for task in schema.tasks if task.domain == domain):
                    rows = task_rows(schema, task)
                    group_R = so_far.groups(rows.user)
                    for step in by_number[number]:
                        yield from _of_step(steps, step, schema, task, rows, group_R)
            so_far.add(each.contents[domain].values(steps.schema.user))


def _of_step(
    steps: Steps, step: Step, schema: Schema, task: str, rows: Rows, group_R: Array
) -> Iterator[dict[str, Any]]:
    domain = task.partition("@")[2]
    for model, config in steps.first_configs().items():
        if domain not in steps.domains(model) or task not in [t.name for t in config.schema_in_use.tasks]:
            continue
        score_R = read_scores(step.scores(model, domain), schema, task, rows.file_user)[rows.in_file]
        activity = {
            name: _metrics(score_R[group_R == place], rows.take(group_R == place))
            for place, name in enumerate(GROUPS)
            if (group_R == place).any()
        }
        line = {**_metrics(score_R, rows), "activity": activity}
        for policy in (step.policy,) if step.policy else steps.replay.policies:
            where = {"model": model, "task": task, "policy": policy, "seed": step.seed}
            yield {**where, "slice": steps.slices[step.number].date, **line}


def _metrics(score_R: Array, rows: Rows) -> Mapping[str, Any]:
    found: Result = binary_metrics(score_R, rows.label, rows.user, rows.weight)
    known = found.as_dict()
    return {name: known[name] for name in (*METRICS, "rows", "positives")}


def _on(schema: Schema, given: Slice) -> Schema:
    """The schema with a slice as its test split."""
    domains = {name: d.model_copy(update={"test": given.files[name]}) for name, d in schema.domains.items()}
    return schema.model_copy(update={"domains": domains})


class _Users:
    """How many rows each user has had so far."""

    def __init__(self) -> None:
        self._user_U, self._rows_U = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def groups(self, user_R: Array) -> Array:
        """The place in GROUPS of every row's user, [R]."""
        place_R = np.searchsorted(self._user_U, user_R).clip(max=max(0, len(self._user_U) - 1))
        if not len(self._user_U):
            return np.zeros(len(user_R), dtype=np.int64)
        rows_R = np.where(self._user_U[place_R] == user_R, self._rows_U[place_R], 0)
        groups_R: Array = np.searchsorted([1, FEW], rows_R, side="right")
        return groups_R

    def add(self, user_R: Array) -> None:
        """Rows of a slice that is past."""
        user, times = np.unique(user_R, return_counts=True)
        self._user_U, place = np.unique(np.concatenate([self._user_U, user]), return_inverse=True)
        self._rows_U = np.bincount(place, np.concatenate([self._rows_U, times])).astype(np.int64)
