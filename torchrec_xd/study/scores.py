"""Scores of a task's test rows: of runs, and of models from outside, which are known by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrec_xd.batch import Batch
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.predictions import read_predictions, read_users
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings, Report, Slice
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.schema import Schema
from torchrec_xd.study.cells import Cell
from torchrec_xd.study.design import Study

AGAIN = "write it again (a run's own: delete it, and compare again)"


@dataclass(frozen=True)
class Outside:
    """A model from outside on one data set and seed: what a cell is to a model that is trained."""

    data: str
    seed: int
    model: str
    task: str
    schema: Schema
    scores: Path
    """Its predictions for the test rows."""
    report: Report

    @property
    def name(self) -> str:
        """`DATA/SEED/MODEL`."""
        return f"{self.data}/{self.seed}/{self.model}"

    def metrics(self) -> dict[str, Any]:
        """As the metrics.json of a run; of the training nothing is known."""
        return {"train": None, **self.report}


def outside_scores(study: Study, folder: Path, every: Sequence[Cell]) -> list[Outside]:
    """Every model from outside on its data sets and seeds: checked, and measured as the runs there are.

    Args:
        study: what is compared.
        folder: the study file's, from which its paths start.
        every: the study's runs, trained or not; the first one on a data set defines what its columns mean, and by which
            slices a model from outside is reported.

    Raises:
        UserError: a file is missing or not of the test rows, or no model is trained on its data.
    """
    found: list[Outside] = []
    for data, entry in study.data.items():
        files = {name: model.scores for name, model in study.models.items() if model.scores and model.on(data)}
        if not files:
            continue
        like = next((cell for cell in every if cell.data == data and cell.task is not None), None)
        if like is None:
            raise UserError(
                f"data.{data}: no model that is shown is trained on it ({', '.join(files)}: from outside); one is "
                "needed, whose config defines what the columns mean"
            )
        schema = _only(like.schema, entry.task)
        batches = list(open_test_rows(like.schema, entry.task, Evaluation(schema, like.config.metrics).extra).batches())
        for name, seed in ((name, seed) for seed in range(study.seeds) for name in files):
            path = folder / files[name].replace("{data}", data).replace("{seed}", str(seed))
            score_R = _given(path, schema, batches, f"models.{name}.scores")
            report = _report(Evaluation(schema, like.config.metrics), batches, score_R)
            found.append(Outside(data, seed, name, entry.task, like.schema, path, report))
    return found


@dataclass(frozen=True)
class Rows:
    """What verdicts need of rows of a task, [R] each."""

    user: Array
    label: Array
    weight: Array
    slices: dict[str, Slice]
    """By column."""
    file_user: Array
    """Of all test rows, [F]."""
    in_file: Array
    """Which of them these rows are: those that have the label, bool [F]."""

    def take(self, index: Array) -> Rows:
        """Some of the rows, without their slices."""
        return replace(self, user=self.user[index], label=self.label[index], weight=self.weight[index], slices={})


def task_rows(schema: Schema, task: str, metrics: MetricSettings | None = None) -> Rows:
    """The test rows that have a task's label, in the order of their files, with the slices of its metrics."""
    own = _only(schema, task)
    evaluation = Evaluation(own, metrics or MetricSettings())
    batches = open_test_rows(schema, task, evaluation.extra).batches()
    columns = ([b.user_B, b.label_BT[:, 0], b.weight_B, b.extra_BK] for b in batches)
    user, label, weight, extra_FK = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    known = ~np.isnan(label)
    return Rows(user[known], label[known], weight[known], evaluation.slices(extra_FK[known]), user, known)


def open_test_rows(schema: Schema, task: str, extra: tuple[str, ...] = ()) -> Loader:
    """Reads the test rows of a task, with what labels and metrics need.

    Raises:
        UserError: there are none.
    """
    loader = Loader(_only(schema, task), LoaderSettings(), "test", ShardSpec(shuffle=False), extra=extra)
    if not loader.rows:
        raise UserError(
            f"the test split of domain '{task.partition('@')[2]}' has no rows, and models are compared on these: name "
            "files with rows in the schema"
        )
    return loader


def read_scores(path: Path, schema: Schema, task: str, user_R: Array) -> Array:
    """Untruncated predictions for the test rows of a task, which are those of `user_R`; [R].

    Raises:
        UserError: there is no such file, or it holds predictions of other rows.
    """
    found_R = read_users(path, schema.user)
    if len(found_R) != len(user_R):
        raise UserError(f"{path}: has {len(found_R):,} rows, the test split {len(user_R):,}; {AGAIN}")
    if not np.array_equal(found_R, user_R):
        row = int(np.argmax(found_R != user_R))
        raise UserError(
            f"{path}: its users are not those of the test rows: in row {row} {found_R[row]}, not {user_R[row]} (of "
            f"strings the hashes); {AGAIN}"
        )
    return read_predictions(path, f"score_{task}")


def _only(schema: Schema, task: str) -> Schema:
    """The schema without all that labels and metrics do not need."""
    own = schema.hashing_keys().only((task.partition("@")[2],)).only_tasks((task,))
    return own.model_copy(update={"features": own.features[:1]})  # a schema has one at least


def _given(path: Path, schema: Schema, batches: Sequence[Batch], key: str) -> Array:
    """The scores of a model from outside, float64 [R].

    Raises:
        UserError: they are not of the test rows, or not all finite.
    """
    [task] = [task.name for task in schema.tasks]
    try:
        score_R = read_scores(path, schema, task, np.concatenate([batch.user_B for batch in batches]))
        if faults := np.count_nonzero(~np.isfinite(score_R)):
            raise UserError(f"{path}: {faults:,} scores are NaN, infinite or missing")
    except UserError as error:
        raise UserError(
            f"{key}: {error}. A model from outside gives '{schema.user}' and 'score_{task}' of all test rows, in the "
            "order of their files, as `torchrec-xd score --parts` writes them; or take it out of the study"
        ) from None
    return score_R.astype(np.float64)


def _report(evaluation: Evaluation, batches: Sequence[Batch], score_R: Array) -> Report:
    scores_R1, start = torch.from_numpy(score_R)[:, None], 0
    for batch in batches:
        evaluation.update(batch, scores_R1[start : start + len(batch)])
        start += len(batch)
    return evaluation.compute(None)
