"""What a model is: embeddings, a net and its loss, as one module that is sharded from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.embeddings import Embeddings, table_parameters
from torchrec_xd.errors import UserError
from torchrec_xd.losses import bce_sum
from torchrec_xd.models.teacher import Teacher
from torchrec_xd.outputs import Losses, Output, Predictions, task_rows
from torchrec_xd.schema import Schema, Task

Loss = Callable[[Predictions, Batch], Losses]
"""From predictions and a labelled batch to the parts of the training loss."""
LEAST_ROWS = 1e-6
"""Less than one row on average over any number of ranks: divides a sum over no row."""


class Model(nn.Module):
    """Embeddings, then a net, then a loss: the module that is sharded, trained, evaluated and served.

    Args:
        embeddings: all tables.
        net: `net(lookups) -> Predictions`, or `net(lookups, teacher_outputs)` where there is a teacher.
        loss: has no weights.
        teacher: a frozen model whose outputs the net reads.
    """

    mean_over_ranks: Callable[[Tensor], Tensor] | None = None
    """Mean of a tensor over the processes of a run (a collective); None: there is one."""

    def __init__(self, embeddings: Embeddings, net: nn.Module, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.net = net
        self.loss = loss
        self.teacher = teacher

    def forward(self, batch: Batch, *, with_loss: bool = True) -> Output:
        """Scores, and the training loss: `with_loss=False` needs no labels."""
        if self.teacher is None:
            predictions = self.net(self.embeddings(batch))
        else:
            teacher_outputs = self.teacher(batch)
            predictions = self.net(self.embeddings(batch), teacher_outputs)
        losses = self.loss(predictions, self._counted(batch)) if with_loss else Losses()
        return Output(predictions.score, losses.parts, losses.monitors)

    def _counted(self, batch: Batch) -> Batch:
        """The batch with its labelled rows counted on all ranks, where some label may be null."""
        if self.mean_over_ranks is None or not any(task.nullable for task in self.embeddings.schema.tasks):
            return batch
        return replace(batch, labelled_T=self.mean_over_ranks(batch.labelled()))

    def parameter_counts(self) -> dict[str, int]:
        """How many weights are trained, in `tables` and `dense`, and how many a teacher keeps `frozen`."""
        frozen = sum(weight.numel() for weight in self.teacher.parameters()) if self.teacher is not None else 0
        tables = sum(weight.numel() for weight in table_parameters(self.embeddings))
        every = sum(weight.numel() for weight in self.parameters())
        return {"dense": every - tables - frozen, "tables": tables, "frozen": frozen}


@dataclass(frozen=True)
class CrossEntropy:
    """Binary cross entropy of every task, `bce/<task>`.

    A task's loss is the sum over its rows divided by the rows of the whole mixed batch: a domain weighs what its rows
    weigh, times its `domain_weight`. Of a nullable task see `task_cross_entropy`.

    Raises:
        UserError: `domain_weight` names an unknown domain.
    """

    schema: Schema
    domain_weight: dict[str, float] = field(default_factory=dict)
    """Domain to a factor on its loss. Default: 1."""

    def __post_init__(self) -> None:
        for name in sorted(set(self.domain_weight) - set(self.schema.domains)):
            known = ", ".join(self.schema.domains)
            raise UserError(f"model.domain_weight: unknown domain '{name}'; domains are: {known}")

    def __call__(self, predictions: Predictions, batch: Batch) -> Losses:
        """The parts of the loss."""
        rows, parts = task_rows(self.schema, batch), {}
        for i, task in enumerate(self.schema.tasks):
            total = task_cross_entropy(task, i, predictions.logit[task.name], batch, rows[task.name])
            parts[f"bce/{task.name}"] = total * (self.domain_weight.get(task.domain, 1.0) / max(len(batch), 1))
        return Losses(parts)


def task_cross_entropy(task: Task, index: int, logit_B: Tensor, batch: Batch, own: slice) -> Tensor:
    """Binary cross entropy of a task, summed over the rows of its domain.

    Of a nullable task: the mean over the rows that have the label, on all ranks, times the rows of the domain, so that
    the task weighs as much as if all had it. 0, with gradients of 0, where no row has it. Row weights multiply a row's
    term and do not enter the number of rows, as in every other task.

    Args:
        task: of which domain, and whether labels may be null.
        index: its place in `Batch.label_BT`.
        logit_B: of the domain's rows.
        batch: labels, weights and counts.
        own: the domain's rows.
    """
    label_B, weight_B = batch.label_BT[own, index], batch.weight_B[own]
    if not task.nullable:
        return bce_sum(logit_B, label_B, weight_B)
    labelled_T = batch.labelled() if batch.labelled_T is None else batch.labelled_T
    total = bce_sum(logit_B, label_B.nan_to_num(), weight_B * ~label_B.isnan())
    return total * len(label_B) / labelled_T[index].clamp(min=LEAST_ROWS)
