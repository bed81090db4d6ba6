"""Exact AUC, GAUC, log loss, NE and calibration per task and slice, with the rows spread over ranks.

No rank ever holds all rows: they are routed by user, so that AUCs within users are local, and the AUC of all rows
comes from a distributed sort of the distinct scores. Both work on some rows at a time.

Shape legend: B rows of a batch, T tasks, K extra columns, R rows of one task on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, TypeAlias, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from torchrec_xd.batch import Batch
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.collectives import Collectives
from torchrec_xd.evaluation.routing import SLAB_ROWS, Part, Rows, chosen, route_by_user
from torchrec_xd.evaluation.row_quantities import Array, refuse_faults
from torchrec_xd.evaluation.spread_rows import Result, ResultDict, result_of
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings

ACTIVITY = "activity"
ACTIVITY_BOUNDS = (0, 10, 30)
ACTIVITY_GROUPS: Mapping[str, Sequence[int]] = {"<10": (1,), "10-30": (2,), ">=30": (3,)}
ABSENT = -1
"""Stands in `Batch.extra_BK` where a row has no value; such rows are in no group, unless one names -1."""
MAX_GROUPS = 1000
Slice: TypeAlias = tuple[Array, Mapping[str, Sequence[int]]]
"""The value of every row, [R], and the groups: name to the values of its rows."""
Members = Annotated[list[int], Field(min_length=1)]


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
    if score.dtype not in (np.float32, np.float64):
        score = score.astype(np.float64)
    rows, ranks = Rows(score, label, weight, user, np.empty((len(label), 0), dtype=np.int64)), Collectives(None)
    slabs = [partial(rows.take, slice(start, start + SLAB_ROWS)) for start in range(0, len(rows) or 1, SLAB_ROWS)]
    parts, faults = route_by_user(slabs, len(rows), ranks)
    refuse_faults("binary metrics", faults)
    return result_of(parts, ranks)


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
            parts, faults = route_by_user(*self._slabs(column, task), ranks)
            refuse_faults(f"task '{name}'", faults)
            report["eval"][name] = result_of(parts, ranks).as_dict()
            report["slices"][name] = self._sliced(parts, ranks)
            if self._schema.weight is not None:
                unweighted = [[replace(piece, weight=None) for piece in part] for part in parts]
                report["unweighted"][name] = result_of(unweighted, ranks).as_dict()
        return report

    def _slabs(self, column: int, name: str) -> tuple[list[Callable[[], Rows]], int]:
        """What makes the rows of a task, some at a time, of one column of scores; and their number at most."""
        task = next(i for i, task in enumerate(self._schema.tasks) if task.name == name)
        domain = list(self._schema.domains).index(self._schema.tasks[task].domain)
        nullable = self._schema.tasks[task].nullable
        slabs: list[Callable[[], Rows]] = []
        chunks: list[_Chunk] = []
        total = waiting = 0
        for chunk in self._chunks:
            chunks.append(chunk)
            waiting += chunk.offsets[domain + 1] - chunk.offsets[domain]
            if waiting >= SLAB_ROWS or chunk is self._chunks[-1]:
                slabs.append(partial(_slab, chunks, domain, column, task, nullable))
                total += waiting
                chunks, waiting = [], 0
        return slabs, total

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

    def _sliced(self, parts: Sequence[Part], ranks: Collectives) -> dict[str, dict[str, ResultDict]]:
        extra_RK = np.concatenate([piece.extra for part in parts for piece in part])
        return {column: _grouped(parts, *found, ranks) for column, found in self.slices(extra_RK, ranks).items()}


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
        """One column of scores, and label, weight, user and extra columns of its task's rows, in `Rows`' order."""
        rows = slice(self.offsets[domain], self.offsets[domain + 1])
        score_R, label_R = self.score_BT[rows, column], self.label_BT[rows, task]
        return score_R, label_R, self.weight_B[rows], self.user_B[rows], self.extra_BK[rows]


def _slab(chunks: Sequence[_Chunk], domain: int, column: int, task: int, nullable: bool) -> Rows:
    parts = [chunk.rows_of(domain, column, task) for chunk in chunks]
    rows = Rows(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))
    return rows.take(~np.isnan(rows.label)) if nullable else rows


def _no_rows(num_domains: int, num_tasks: int, num_scores: int, num_extra: int) -> _Chunk:
    """Stands first, so that a rank without batches takes part with columns of the right types."""
    values_B, ids_B = torch.empty(0), torch.empty(0, dtype=torch.int64)
    score_BT, label_BT = torch.empty(0, num_scores), torch.empty(0, num_tasks)
    extra_BK = torch.empty(0, num_extra, dtype=torch.int64)
    return _Chunk((0,) * (num_domains + 1), score_BT, label_BT, values_B, ids_B, extra_BK)


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
    parts: Sequence[Part], value_R: Array, groups: Mapping[str, Sequence[int]], ranks: Collectives
) -> dict[str, ResultDict]:
    results = {name: result_of(chosen(parts, np.isin(value_R, members)), ranks) for name, members in groups.items()}
    return {name: result.as_dict() for name, result in results.items() if result.rows}
