"""What the trainer moves: embeddings, a net and its loss, as one module that is sharded from outside.

Shape legend: B rows of the batch, B_d rows of domain d, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.embeddings import Embeddings, Layout, Lookups, table_parameters
from torchrec_xd.losses import bce_sum
from torchrec_xd.modules.attention import SequencePooling
from torchrec_xd.modules.hfa import HeterogeneousFeatureAlignment
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.rows import beside
from torchrec_xd.schema import Group, Schema
from torchrec_xd.settings import UserError


@dataclass(frozen=True)
class Output:
    """What a net says of a batch."""

    score: dict[str, Tensor]
    """Task to its prediction for the rows of its domain, `[B_d]`: what metrics read and what is served. Keys
    `<task>/<name>` are further views of a task, which metrics read too."""
    loss: dict[str, Tensor]
    """Named parts of the training loss, scalars; their sum is minimised. NaN where labels were not read."""
    monitors: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth a curve, detached."""


class RowVectors(nn.Module):
    """The vectors that every row has, whatever its domain: `user`, `sequence` and `shared`, those that the schema has.

    Context and scene belong to the user's moment: they are part of `user`, the scene unless told otherwise.
    """

    def __init__(self, dims: Layout, pooling: Literal["attention", "mean"], *, scene: bool = True) -> None:
        super().__init__()
        self.pooling = SequencePooling(dims.sequences, pooling)
        self.moment: tuple[Group, ...] = ("user", "context", "scene") if scene else ("user", "context")
        user = sum(dims.groups[group] for group in self.moment)
        every = {"user": user, "sequence": self.pooling.out_dim, "shared": dims.groups["shared"]}
        self.dims = {name: dim for name, dim in every.items() if dim}
        self.out_dim = sum(self.dims.values())

    def forward(self, lookups: Lookups) -> dict[str, Tensor]:
        """Name to `[B, dims[name]]`."""
        user = beside(lookups.groups[group] for group in self.moment)
        every = {"user": user, "sequence": self.pooling(lookups.sequences), "shared": lookups.groups["shared"]}
        return {name: every[name] for name in self.dims}


def with_specific(rows: Tensor, lookups: Lookups, domain: str) -> Tensor:
    """Vectors of one domain's rows, with its specific features behind them: `[B_d, W] -> [B_d, W + N * D]`."""
    return torch.cat([rows, lookups.specific[domain].flatten(1)], dim=1)


class SpecificAlignment(ModuleMap):
    """Every domain's specific features at one width: HFA, or with `scores=False` its last linear layer alone.

    A domain without specific features, or one that is not among `domains`, reads as zero.
    """

    def __init__(self, dims: Layout, aligned_dim: int, domains: Iterable[str], *, scores: bool = False) -> None:
        super().__init__(
            {
                domain: HeterogeneousFeatureAlignment(*dims.specific[domain], aligned_dim, scores=scores)
                for domain in domains
                if dims.specific[domain][0]
            }
        )
        self.out_dim = aligned_dim

    def forward(self, lookups: Lookups) -> Tensor:
        """All rows, `[B, aligned_dim]`."""
        return torch.cat([self._align(specific, domain) for domain, specific in lookups.specific.items()])

    def _align(self, specific_BND: Tensor, domain: str) -> Tensor:
        if domain not in self.names or not specific_BND.shape[1]:
            return specific_BND.new_zeros(len(specific_BND), self.out_dim)
        return self[domain](specific_BND)  # type: ignore[no-any-return]


class Teacher(nn.Module):
    """A frozen model that hands knowledge over: never a gradient, never a step, dropout off."""

    def __init__(self, embeddings: Embeddings, net: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.net = net
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Name to vector per row."""
        knowledge: dict[str, Tensor] = self.net(self.embeddings(batch))
        return knowledge


class TrainTask(nn.Module):
    """Embeddings, then net: the module that is sharded, trained, evaluated and served.

    Args:
        net: `net(lookups, batch, taught) -> Output`, a model without its tables.
        teacher: gives `taught`; nothing is taught without one.
    """

    def __init__(self, embeddings: Embeddings, net: nn.Module, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.net = net
        self.teacher = teacher

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """The loss (a scalar; mean over the batch's rows) and what the net said."""
        taught = self.teacher(batch) if self.teacher is not None else {}
        output: Output = self.net(self.embeddings(batch), batch, taught)
        return torch.stack(list(output.loss.values())).sum(), output

    def parameter_counts(self) -> dict[str, int]:
        """How many weights are trained, in `tables` and `dense`, and how many a teacher keeps `frozen`."""
        frozen = sum(weight.numel() for weight in self.teacher.parameters()) if self.teacher is not None else 0
        tables = sum(weight.numel() for weight in table_parameters(self.embeddings))
        every = sum(weight.numel() for weight in self.parameters())
        return {"dense": every - tables - frozen, "tables": tables, "frozen": frozen}


@dataclass(frozen=True)
class Transfer:
    """What a model takes from the run it begins with: declared in full, so that nothing is left out silently."""

    source: str
    """Name of the model that the other run must have trained."""
    prefixes: dict[str, str]
    """Prefix of names here to the prefix of the same weights there; all other weights here start fresh."""
    prunable: tuple[str, ...]
    """Prefixes of names there that may be left behind."""
    further: Callable[[Schema, Schema], dict[str, str]] = lambda here, there: {}
    """More of `prefixes`, those that depend on the schemas of the two runs; one without a dot at its end is a name."""
    required: bool = True
    """Whether the model cannot do without another run to begin with."""
    slices: bool = False
    """Whether it may also begin with a run of its own kind, of which every weight goes on: the next slice of time."""


def check_same_features(taught: Schema, schema: Schema) -> None:
    """A teacher's tables read the student's batches: what it was taught must be in them, and mean the same.

    Raises:
        UserError: a feature of `taught` is missing in `schema`, or has other settings there.
    """
    here = {feature.column: feature for feature in schema.features}
    for feature in taught.features:
        found = here.get(feature.column, "no such feature")
        if found != feature:
            raise UserError(f"stage 1 was trained with feature {feature}, this schema has {found}: use the same schema")


def check_common_features(taught: Schema, schema: Schema) -> None:
    """Features that two runs on different domains have in common have to mean the same in both.

    Raises:
        UserError: one has other settings, or its table is read by a sequence in one of the two only.
    """
    there = {feature.column: feature for feature in taught.features}
    sequential = [{t.name for t in s.tables() if t.sequential} for s in (taught, schema)]
    for feature in schema.features:
        found = there.get(feature.column)
        if found is None:
            continue
        if found.model_copy(update={"domains": feature.domains}) != feature:
            raise UserError(
                f"init_from was trained with feature {found}, this schema has {feature}: use the same schema"
            )
        if (feature.table_name in sequential[0]) != (feature.table_name in sequential[1]):
            raise UserError(
                f"a sequence reads the table of feature '{feature.column}' in one of the two runs only: give it "
                "a table of its own"
            )


def check_domain_weight(schema: Schema, domain_weight: Mapping[str, float]) -> None:
    """Refuse a factor on the loss of a domain that is not there.

    Raises:
        UserError: `domain_weight` names an unknown domain.
    """
    for name in sorted(set(domain_weight) - set(schema.domains)):
        raise UserError(f"model.domain_weight: unknown domain '{name}'; domains are: {', '.join(schema.domains)}")


def task_rows(schema: Schema, batch: Batch) -> dict[str, slice]:
    """Task to the rows of its domain."""
    by_domain = {domain: batch.rows(i) for i, domain in enumerate(schema.domains)}
    return {task.name: by_domain[task.domain] for task in schema.tasks}


def logit_output(
    logits: Mapping[str, Tensor], schema: Schema, batch: Batch, domain_weight: Mapping[str, float] | None = None
) -> Output:
    """Scores and the binary cross entropy of every task (`bce/<task>`) from its logits `[B_d, 1]`.

    A task's loss is the sum over its rows divided by the rows of the whole mixed batch, so a domain weighs what its
    rows weigh, times `domain_weight` (1 where a domain is not named).
    """
    rows, weights = task_rows(schema, batch), domain_weight or {}
    score, loss = {}, {}
    for i, task in enumerate(schema.tasks):
        own, logit = rows[task.name], logits[task.name].squeeze(1)
        total = bce_sum(logit, batch.label_BT[own, i], batch.weight_B[own])
        score[task.name] = logit.sigmoid()
        loss[f"bce/{task.name}"] = total * (weights.get(task.domain, 1.0) / max(len(batch), 1))
    return Output(score, loss)


def score_matrix(schema: Schema, batch: Batch, output: Output, views: Mapping[str, str]) -> Tensor:
    """`Output.score` as `[B, T + V]`: tasks, then views (name to task); NaN where a row is another domain's."""
    columns = {**{task.name: task.name for task in schema.tasks}, **views}
    score_BT = torch.full((len(batch), len(columns)), torch.nan)
    rows = task_rows(schema, batch)
    for i, (name, task) in enumerate(columns.items()):
        score_BT[rows[task], i] = output.score[name].detach().float().cpu()
    return score_BT
