"""Model outputs for a batch, the counterpart of batch.py.

Shape legend: B rows of the batch, B_d rows of domain d, T tasks, A auxiliary scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchrec_xd.batch import Batch
from torchrec_xd.schema import Schema


@dataclass(frozen=True)
class Predictions:
    """What a net computes for a batch, labels unseen."""

    logit: dict[str, Tensor]
    """Task to logit, for the rows of the task's domain, `[B_d]`: what cross entropies are computed from."""
    score: dict[str, Tensor]
    """Task to prediction, `[B_d]`: what metrics read and what is served. Keys `<task>/<name>` are auxiliary scores."""
    vectors: dict[str, Any] = field(default_factory=dict)
    """Whatever else the model's loss reads, by name: tensors, or tuples of them."""

    @classmethod
    def from_logits(cls, logits: Mapping[str, Tensor], vectors: dict[str, Any] | None = None) -> Predictions:
        """Predictions that are the sigmoid of one logit per task, `[B_d, 1]` each."""
        logit = {task: logit_B1.squeeze(1) for task, logit_B1 in logits.items()}
        return cls(logit, {task: logit_B.sigmoid() for task, logit_B in logit.items()}, vectors or {})


@dataclass(frozen=True)
class Losses:
    """What a loss computes from predictions and labels."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """Named parts of the training loss, scalars; their sum is minimised."""
    monitors: dict[str, Tensor] = field(default_factory=dict)
    """Further scalars to log, detached."""


@dataclass(frozen=True)
class Output:
    """Model outputs for a batch."""

    score: dict[str, Tensor]
    """As in `Predictions`."""
    loss: dict[str, Tensor]
    """Parts of the training loss; empty where no loss was asked for."""
    monitors: dict[str, Tensor]
    """Further scalars to log, detached."""

    def total_loss(self) -> Tensor:
        """The training loss, a scalar: the mean over the batch's rows."""
        return torch.stack(list(self.loss.values())).sum()


def task_rows(schema: Schema, batch: Batch) -> dict[str, slice]:
    """Task to the rows of its domain."""
    by_domain = {domain: batch.rows(i) for i, domain in enumerate(schema.domains)}
    return {task.name: by_domain[task.domain] for task in schema.tasks}


def scores_on_cpu(score: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Scores by name as float32 `[T, B]`, brought to the CPU by one copy."""
    return torch.stack([score[name].float() for name in names]).cpu()


def score_matrix(schema: Schema, batch: Batch, output: Output, auxiliary: Mapping[str, str]) -> Tensor:
    """`Output.score` as `[B, T + A]`: tasks, then auxiliary scores (name to task); NaN in rows of other domains.

    On the device of the scores, so that one copy brings all of a batch to the CPU.
    """
    columns = {**{task.name: task.name for task in schema.tasks}, **auxiliary}
    device = output.score[next(iter(columns))].device
    score_BT = torch.full((len(batch), len(columns)), torch.nan, device=device)
    rows = task_rows(schema, batch)
    for i, (name, task) in enumerate(columns.items()):
        score_BT[rows[task], i] = output.score[name].detach().float()
    return score_BT
