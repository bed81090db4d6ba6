"""Exact AUC, GAUC, log loss, NE and calibration per task and slice, with the rows spread over ranks.

No rank ever holds all rows: they are routed by user, so that AUCs within users are local, and the AUC of all rows
comes from a distributed sort of the distinct scores.

Shape legend: B rows of a batch, T tasks, K extra columns, R rows of one task on this rank, S distinct scores on this
rank, U users on this rank, W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, TypeAlias, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from torchrec_xd.batch import Batch
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.collectives import Collectives
from torchrec_xd.evaluation.row_quantities import (
    Array,
    auc_by_user,
    count_faults,
    log_losses,
    refuse_faults,
    run_starts,
)
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings

ACTIVITY = "activity"
ACTIVITY_BOUNDS = (0, 10, 30)
ACTIVITY_GROUPS: Mapping[str, Sequence[int]] = {"<10": (1,), "10-30": (2,), ">=30": (3,)}
ABSENT = -1
"""Stands in `Batch.extra_BK` where a row has no value; such rows are in no group, unless one names -1."""
MAX_GROUPS = 1000
SAMPLES_PER_RANK = 1024
"""Scores from which each rank's distribution is guessed when scores are cut into one range per rank: the loads then
differ from each other by some W / 1024."""

ResultDict = dict[str, float | int | None]
Slice: TypeAlias = tuple[Array, Mapping[str, Sequence[int]]]
"""The value of every row, [R], and the groups: name to the values of its rows."""
Members = Annotated[list[int], Field(min_length=1)]


@dataclass(frozen=True)
class Result:
    """Metrics of a set of rows; NaN where undefined.

    AUC and GAUC take scores as they are; log loss, NE and calibration truncate them to [0, 1]. Row weights count in
    all metrics, and in none of the four counts.
    """

    auc: float
    """Weighted share of (positive, negative) pairs in the right order, ties one half."""
    gauc: float
    """Mean of AUCs within users, each weighing the user's impressions (summed row weights)."""
    logloss: float
    """Mean cross entropy in nats."""
    ne: float
    """Normalized entropy: log loss over that of always predicting the base rate."""
    calibration: float
    """Sum of predictions over sum of labels."""
    rows: int
    positives: int
    gauc_users: int
    """Users with both classes; only they enter `gauc`."""
    gauc_users_excluded: int
    """Users with one class, left out of `gauc`."""

    def as_dict(self) -> ResultDict:
        """The fields as JSON knows them: None in place of NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


class Report(TypedDict):
    """Metrics by task name, and by name of an auxiliary score, `<task>/<name>`; the same on all ranks."""

    eval: dict[str, ResultDict]
    unweighted: dict[str, ResultDict]
    """The same with every row counting once; empty where the schema has no weights."""
    slices: dict[str, dict[str, dict[str, ResultDict]]]
    """Task -> `activity` or column -> group; groups without rows are left out."""


class MetricSettings(Settings):
    """What is reported besides the metrics of each task."""

    slices: dict[str, Annotated[dict[str, Members], Field(min_length=1)] | None] = Field(default_factory=dict)
    """Integer column -> named groups of its values (others are left out), or null: each value its own group. Rows
    without a value have -1; only a group that names it reports them."""


def binary_metrics(score: Array, label: Array, user: Array, weight: Array | None = None) -> Result:
    """Metrics of rows that one process holds.

    Args:
        score: predictions, any real numbers, [R].
        label: 0 or 1, [R].
        user: integers that group rows for GAUC, [R].
        weight: row weights, not negative, [R]; default: ones.

    Raises:
        UserError: a score is not finite, a label not binary, a weight negative or not finite.
    """
    weight = np.ones(len(label)) if weight is None else weight
    refuse_faults("binary metrics", count_faults(score, label, weight))
    rows = _Rows(score, label, weight, user, np.empty((len(label), 0), dtype=np.int64))
    return _result(rows.take(np.argsort(score)), Collectives(None))


class Evaluation:
    """Accumulates the predictions of one split on this rank; `compute` makes the report of all ranks.

    Args:
        schema: its tasks are evaluated, its activity column is sliced by.
        settings: further slices.
        auxiliary: name of each auxiliary score to the task whose rows it is for.

    Raises:
        UserError: a slice column has the name under which user activity is reported.
    """

    extra: tuple[str, ...]
    """Columns that the reader must bring in `Batch.extra_BK`, in this order."""

    def __init__(self, schema: Schema, settings: MetricSettings, auxiliary: Mapping[str, str] | None = None) -> None:
        if schema.activity is not None and ACTIVITY in settings.slices:
            raise UserError(
                f"slices: column '{ACTIVITY}' has the name under which the schema's activity column, "
                f"'{schema.activity}', is reported; leave it out, or give the column another name"
            )
        activity = () if schema.activity is None else (schema.activity,)
        self.extra = tuple(dict.fromkeys((*activity, *settings.slices)))
        self._schema, self._slices = schema, settings.slices
        self._columns = {**{task.name: task.name for task in schema.tasks}, **(auxiliary or {})}
        self._chunks = [_no_rows(len(schema.domains), len(schema.tasks), len(self._columns), len(self.extra))]

    def update(self, batch: Batch, score_BT: Tensor) -> None:
        """Take over the predictions of one batch; copied to the CPU without waiting for the device.

        Args:
            batch: rows whose `extra_BK` holds the columns `extra`.
            score_BT: predictions by task, then auxiliary scores, float32 or float64; not read in rows of other domains.
        """
        assert score_BT.shape == (len(batch), len(self._columns)), (score_BT.shape, self._columns)
        assert batch.extra_BK.shape == (len(batch), len(self.extra)), (batch.extra_BK.shape, self.extra)
        parts = (score_BT.detach(), batch.label_BT, batch.weight_B, batch.user_B, batch.extra_BK)
        self._chunks.append(_Chunk(batch.offsets, *(part.to("cpu", non_blocking=True) for part in parts)))

    def compute(self, group: dist.ProcessGroup | None) -> Report:
        """The report on all rows that the ranks of `group` took over, or on this rank's where `group` is None.

        A collective: every rank calls it, however many rows it has.

        Raises:
            UserError: on every rank: a task has scores that are not finite, labels that are not binary, weights that
                are negative; or a slice column has more than 1,000 values.
        """
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        ranks = Collectives(group)
        report = Report(eval={}, unweighted={}, slices={})
        for column, (name, task) in enumerate(self._columns.items()):
            rows = self._rows(column, task)
            refuse_faults(f"task '{name}'", ranks.total(count_faults(rows.score, rows.label, rows.weight)))
            rows = _route_by_user(rows, ranks)
            rows = rows.take(np.argsort(rows.score))
            report["eval"][name] = _result(rows, ranks).as_dict()
            report["slices"][name] = self._sliced(rows, ranks)
            if self._schema.weight is not None:
                unweighted = replace(rows, weight=np.ones_like(rows.weight))
                report["unweighted"][name] = _result(unweighted, ranks).as_dict()
        return report

    def _rows(self, column: int, name: str) -> _Rows:
        task = next(i for i, task in enumerate(self._schema.tasks) if task.name == name)
        domain = list(self._schema.domains).index(self._schema.tasks[task].domain)
        parts = [chunk.rows_of(domain, column, task) for chunk in self._chunks]
        rows = _Rows(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))
        return rows.take(~np.isnan(rows.label)) if self._schema.tasks[task].nullable else rows

    def slices(self, extra_RK: Array, ranks: Collectives | None = None) -> dict[str, Slice]:
        """`activity` or column to its slice, for rows of this process or of all `ranks` (a collective).

        Raises:
            UserError: a column, each of whose values is a group, has more than 1,000 of them.
        """
        found: dict[str, Slice] = {}
        if self._schema.activity is not None:
            activity_R = extra_RK[:, self.extra.index(self._schema.activity)]
            found[ACTIVITY] = np.searchsorted(ACTIVITY_BOUNDS, activity_R, side="right"), ACTIVITY_GROUPS
        for column, groups in self._slices.items():
            value_R = extra_RK[:, self.extra.index(column)]
            found[column] = value_R, groups or _each_value(column, value_R, ranks or Collectives(None))
        return found

    def _sliced(self, rows: _Rows, ranks: Collectives) -> dict[str, dict[str, ResultDict]]:
        return {column: _grouped(rows, *found, ranks) for column, found in self.slices(rows.extra, ranks).items()}


@dataclass(frozen=True)
class _Chunk:
    """What is kept of a batch; copies from a GPU may still be under way until `compute` synchronizes."""

    offsets: tuple[int, ...]
    score_BT: Tensor
    label_BT: Tensor
    weight_B: Tensor
    user_B: Tensor
    extra_BK: Tensor

    def rows_of(self, domain: int, column: int, task: int) -> tuple[Tensor, ...]:
        """One column of scores, and label, weight, user and extra columns of its task's rows, in `_Rows`' order."""
        rows = slice(self.offsets[domain], self.offsets[domain + 1])
        score_R, label_R = self.score_BT[rows, column].double(), self.label_BT[rows, task]
        return score_R, label_R, self.weight_B[rows], self.user_B[rows], self.extra_BK[rows]


def _no_rows(num_domains: int, num_tasks: int, num_scores: int, num_extra: int) -> _Chunk:
    """Stands first, so that a rank without batches takes part with columns of the right types."""
    values_B, ids_B = torch.empty(0), torch.empty(0, dtype=torch.int64)
    score_BT, label_BT = torch.empty(0, num_scores), torch.empty(0, num_tasks)
    extra_BK = torch.empty(0, num_extra, dtype=torch.int64)
    return _Chunk((0,) * (num_domains + 1), score_BT, label_BT, values_B, ids_B, extra_BK)


@dataclass(frozen=True)
class _Rows:
    """Rows of one task, [R] each and [R, K]."""

    score: Array
    label: Array
    weight: Array
    user: Array
    extra: Array

    def columns(self) -> tuple[Array, ...]:
        return self.score, self.label, self.weight, self.user, self.extra

    def take(self, index: Array) -> _Rows:
        return _Rows(*(column[index] for column in self.columns()))


def _route_by_user(rows: _Rows, ranks: Collectives) -> _Rows:
    """All rows of a user on one rank; ids are scrambled first, as they may share a divisor with the number of ranks."""
    scrambled_R = rows.user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    return _Rows(*ranks.exchange(rows.columns(), (scrambled_R % np.uint64(ranks.size)).astype(np.int64)))


def _result(rows: _Rows, ranks: Collectives) -> Result:
    """Metrics of the rows of all ranks; scores ascend on each, and no user has rows on two of them."""
    weight_R, prob_R = rows.weight.astype(np.float64), np.clip(rows.score, 0, 1)
    _, auc_U, weight_U = auc_by_user(rows.score, rows.label, rows.user, rows.weight)
    kept_U = ~np.isnan(auc_U)
    ordered, positive, negative = _ordered_pairs(rows, ranks)
    sums = {
        "rows": len(weight_R),
        "positives": np.count_nonzero(rows.label),
        "loss": weight_R @ log_losses(rows.score, rows.label),
        "predicted": weight_R @ prob_R,
        "user_auc": weight_U[kept_U] @ auc_U[kept_U],
        "user_weight": weight_U[kept_U].sum(),
        "users": np.count_nonzero(kept_U),
        "users_excluded": np.count_nonzero(~kept_U),
        "ordered": ordered,
        "positive": positive,
        "negative": negative,
    }
    by_rank = dict(zip(sums, ranks.gather(np.array(list(sums.values()))).T, strict=True))
    negative_below_W = _earlier(by_rank["negative"])
    ordered_between = float(by_rank["positive"] @ negative_below_W)
    total = {name: float(values_W.sum()) for name, values_W in by_rank.items()}
    weight = total["positive"] + total["negative"]
    logloss = _ratio(total["loss"], weight)
    return Result(
        auc=_ratio(total["ordered"] + ordered_between, total["positive"] * total["negative"]),
        gauc=_ratio(total["user_auc"], total["user_weight"]),
        logloss=logloss,
        ne=_ratio(logloss, _entropy(_ratio(total["positive"], weight))),
        calibration=_ratio(total["predicted"], total["positive"]),
        rows=int(total["rows"]),
        positives=int(total["positives"]),
        gauc_users=int(total["users"]),
        gauc_users_excluded=int(total["users_excluded"]),
    )


def _ordered_pairs(rows: _Rows, ranks: Collectives) -> tuple[float, float, float]:
    """Each rank gets one range of the scores, ranges ascending by rank.

    Equal scores are added up before they travel: ties, however heavy, burden no rank.

    Returns:
        Weight of this range's (positive, negative) pairs in the right order, ties half; of its positives; negatives.
    """
    positive_R = (rows.weight * rows.label).astype(np.float64)
    score, positive, negative = _sum_ties(rows.score, positive_R, rows.weight - positive_R)
    if ranks.size > 1:
        destination = np.searchsorted(_splitters(score, ranks), score, side="right")
        (arrived,) = ranks.exchange([np.stack([score, positive, negative], axis=1)], destination)
        _, positive, negative = _sum_ties(*arrived[np.argsort(arrived[:, 0])].T)
    below = _earlier(negative)
    return float(positive @ (below + negative / 2)), float(positive.sum()), float(negative.sum())


def _earlier(values: Array) -> Array:
    """Sum of all values before each; never a difference of sums, which would lose small values next to large ones."""
    return np.append(0.0, np.cumsum(values))[:-1]


def _sum_ties(score: Array, *columns: Array) -> tuple[Array, ...]:
    """Distinct scores, and the sums of the columns over each; scores ascend."""
    start = run_starts(score)
    return score[start], *(np.add.reduceat(column, start) for column in columns)


def _splitters(score_S: Array, ranks: Collectives) -> Array:
    """W - 1 scores that cut the distinct scores of all ranks into ranges of about equal size; `score_S` ascends."""
    num = SAMPLES_PER_RANK
    sample = score_S[np.linspace(0, len(score_S) - 1, num).astype(np.int64)] if len(score_S) else np.zeros(num)
    gathered = ranks.gather(np.append(sample, len(score_S)))
    samples, stand_for = gathered[:, :num].ravel(), np.repeat(gathered[:, num], num)
    order = np.argsort(samples)
    filled = np.cumsum(stand_for[order])
    at = np.searchsorted(filled, filled[-1] * np.arange(1, ranks.size) / ranks.size)
    return np.asarray(samples[order][at])


def _each_value(column: str, value_R: Array, ranks: Collectives) -> dict[str, list[int]]:
    """A group for each value that some rank has."""
    values = ranks.union(np.unique(value_R[value_R != ABSENT])[: MAX_GROUPS + 1])
    if len(values) > MAX_GROUPS:
        raise UserError(
            f"slices: column '{column}' has more than {MAX_GROUPS} values; name the groups to report, "
            f"slices: {{{column}: {{NAME: [VALUE, VALUE], ...}}}}"
        )
    return {str(value): [value] for value in values.tolist()}


def _grouped(
    rows: _Rows, value_R: Array, groups: Mapping[str, Sequence[int]], ranks: Collectives
) -> dict[str, ResultDict]:
    results = {
        name: _result(rows.take(np.flatnonzero(np.isin(value_R, members))), ranks) for name, members in groups.items()
    }
    return {name: result.as_dict() for name, result in results.items() if result.rows}


def _entropy(rate: float) -> float:
    """Log loss of always predicting the base rate; 0 for a rate of 0 or 1, NaN for an unknown one."""
    if rate in (0, 1):
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by."""
    return numerator / denominator if denominator > 0 else math.nan
