"""EXIT: explicit interest transfer (arXiv 2407.20121).

One stage. A tower per domain predicts the interest in it; the scene selector network predicts how much of each source
interest is fit for the target, in this scene; the sum is the prediction, trained on the interest combination label.

Shape legend: B rows of the target domain (their number divides no loss: that is the whole batch's), K sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import nn

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Diagnostic
from torchrec_xd.diagnostics.transfer import TransferByScene, TransferProbabilities
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.losses import absolute_error_sum, probability_bce_sum
from torchrec_xd.models.blocks import NetSettings, RowVectors, Widths
from torchrec_xd.models.model import Model, task_cross_entropy
from torchrec_xd.models.spec import DiagnosedRun, ModelSpec
from torchrec_xd.modules.ipn import InterestPredictionNetwork
from torchrec_xd.modules.rows import by_domain, concat
from torchrec_xd.modules.ssn import ConstantSelector, SceneSelectorNetwork
from torchrec_xd.outputs import Losses, Predictions, task_rows
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings


class SourceSettings(Settings):
    """A source domain: the tasks (`<label>@<domain>`) whose labels hold what the user wanted there."""

    wanted: str
    """`y_s`, of target rows: did the user act on the item in this source, within the label window."""
    fit: str
    """`c`, of target rows: is this source interest fit for the target."""
    own: str | None = None
    """Label of the source domain's own rows, if they are to teach its tower too (they feed nothing else)."""


class ExitSettings(NetSettings):
    """EXIT. Its labels come from `prepare` or `label`; these settings name their columns."""

    name: Literal["exit"] = "exit"
    target: str
    """Task of `y_t`: did the user act on the item in the target domain."""
    sources: dict[str, SourceSettings] = Field(min_length=1)
    """Any number, by name."""
    widths: Widths = Field(default=(1024, 512, 64), min_length=1)
    """Layers of every tower."""
    scene_widths: Widths = (64,)
    """Layers of the scene selector network."""
    ssn: bool = True
    """False is the ablation "w/o SSN": a learned constant per source."""
    icl: bool = True
    """False is the ablation "w/o ICL": no L1 term, the whole prediction learns `y_t` by cross entropy."""
    transfer_loss: Literal["whole", "transfer"] = "whole"
    """What the L1 term holds against what. whole: the prediction P against the label `y_icl`. transfer: `P_tr` against
    `c`, over rows with `y_s = 1`. The summaries of the paper that we have allow both readings. An absolute error is
    least at the median: with `whole`, `P_tr` falls to 0 where most rows have no fitting interest; take `transfer`
    where `P_tr` is to be read (docs/results/homepage_2026-11-22.md)."""
    target_weight: NonNegativeFloat = 1.0
    """lambda 1, of the target tower's cross entropy."""
    source_weight: NonNegativeFloat = 1.0
    """lambda 2, of the source towers' cross entropies."""
    transfer_weight: NonNegativeFloat = 1.0
    """lambda 3, of the L1 term."""

    @property
    def alone(self) -> str:
        """Name of the target tower's own prediction `P_t`, an auxiliary score next to the whole prediction."""
        return f"{self.target}/target"

    def tasks(self) -> tuple[str, ...]:
        """All tasks whose labels are read."""
        sources = self.sources.values()
        own = [source.own for source in sources if source.own is not None]
        return (self.target, *(s.wanted for s in sources), *(s.fit for s in sources), *own)


class ExplicitInterestTransfer(nn.Module):
    """`P = P_t + sum_k P_s^k P_tr^k`: interest in the target, and what is fit of that in each source.

    P may exceed 1. It is the score of the target task as it is; where a probability is needed (log loss, calibration,
    what `score` writes) it is truncated to [0, 1].
    """

    def __init__(self, schema: Schema, settings: ExitSettings) -> None:
        super().__init__()
        self.settings = settings
        self.domain_of = {task.name: task.domain for task in schema.tasks}
        dims = layout(schema)
        self.vectors = RowVectors(dims, settings.sequence_pooling, scene=False)
        width = self.vectors.out_dim
        domains = (settings.target, *settings.sources)
        self.ipn = InterestPredictionNetwork(width, domains, settings.widths, settings.dropout)
        self.selector: nn.Module = ConstantSelector(len(settings.sources))
        if settings.ssn:
            in_dim = width + dims.groups["scene"]
            self.selector = SceneSelectorNetwork(in_dim, len(settings.sources), settings.scene_widths, settings.dropout)

    def forward(self, lookups: Lookups) -> Predictions:
        """Scores: the target task gets P, and P_t as auxiliary score; `wanted` tasks get P_s, `fit` tasks P_tr."""
        settings, sources = self.settings, self.settings.sources
        of_domain = by_domain(concat(self.vectors(lookups).values()), lookups.rows)
        rows_BW = of_domain[self.domain_of[settings.target]]
        logit = {settings.target: self.ipn(rows_BW, settings.target)}
        for name, source in sources.items():
            logit[source.wanted] = self.ipn(rows_BW, name)
            if source.own is not None:
                logit[source.own] = self.ipn(of_domain[self.domain_of[source.own]], name)
        scene_BS = lookups.groups["scene"][lookups.rows[self.domain_of[settings.target]]]
        transfer_BK = self.selector(rows_BW, scene_BS).sigmoid()
        score = {task: values.sigmoid() for task, values in logit.items()}
        score |= {source.fit: transfer_BK[:, k] for k, source in enumerate(sources.values())}
        score[settings.alone] = score[settings.target]
        passed = [score[source.wanted] * score[source.fit] for source in sources.values()]
        score[settings.target] = torch.stack([score[settings.alone], *passed]).sum(0)
        return Predictions(logit, score)


@dataclass(frozen=True)
class ExitLoss:
    """`l1 BCE(P_t, y_t) + l2 sum_k BCE(P_s^k, y_s^k) + l3 |P - y_icl|`, sums over their rows, divided by all rows."""

    schema: Schema
    settings: ExitSettings

    def __call__(self, predictions: Predictions, batch: Batch) -> Losses:
        """The parts of the loss; monitors are the mean transfer probabilities."""
        settings, rows = self.settings, task_rows(self.schema, batch)
        logit, score = predictions.logit, predictions.score
        tasks = {task.name: (task, i) for i, task in enumerate(self.schema.tasks)}
        label = {name: batch.label_BT[rows[name], i] for name, (_, i) in tasks.items()}
        weight_B = batch.weight_B[rows[settings.target]]
        parts = {
            f"bce/{task}": task_cross_entropy(*tasks[task], values, batch, rows[task])
            * (settings.target_weight if task == settings.target else settings.source_weight)
            for task, values in logit.items()
        }
        prob_B, sources = score[settings.target], settings.sources.values()
        if not settings.icl:
            transfer = probability_bce_sum(prob_B, label[settings.target], weight_B)
        elif settings.transfer_loss == "whole":
            fitting = [label[source.wanted] * label[source.fit] for source in sources]
            label_B = torch.stack([label[settings.target], *fitting]).sum(0)
            transfer = absolute_error_sum(prob_B, label_B, weight_B)
        else:
            errors = [
                absolute_error_sum(score[source.fit], label[source.fit], weight_B * label[source.wanted])
                for source in sources
            ]
            transfer = torch.stack(errors).sum()
        parts["transfer"] = settings.transfer_weight * transfer
        monitors = {f"transfer/{name}": score[s.fit].detach().mean() for name, s in settings.sources.items()}
        return Losses({name: part / max(len(batch), 1) for name, part in parts.items()}, monitors)


def build_exit(schema: Schema, settings: ExitSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """EXIT on one target domain and the labels of any number of sources.

    Raises:
        UserError: tasks that the schema lacks, that lie in the wrong domain, or that nothing uses; features that only
            one domain has; no scenes for the scene selector network, or vectors as scenes without that network.
    """
    _check_tasks(schema, settings)
    specific = [feature.column for feature in schema.features if feature.group == "specific"]
    if specific:
        raise UserError(
            f"model 'exit' shares items between domains, and has no use for specific features ({', '.join(specific)}); "
            "give them the group shared or context, or leave them out: without: [COLUMN]"
        )
    if settings.ssn and not any(feature.group == "scene" for feature in schema.features):
        raise UserError("model 'exit' selects by scene: give some feature the group scene, or set model.ssn=false")
    unread = [f.column for f in schema.features if (f.group, f.kind) == ("scene", "vector") and not settings.ssn]
    if unread:  # its projection would never get a gradient, which ranks would wait for
        raise UserError(
            f"model 'exit' with model.ssn=false reads no scene, and has no use for the vector '{unread[0]}'; leave it "
            f"out: without: [{unread[0]}]"
        )
    tables, net = Embeddings(schema, embeddings, seed), ExplicitInterestTransfer(schema, settings)
    return Model(tables, net, ExitLoss(schema, settings))


def _check_tasks(schema: Schema, settings: ExitSettings) -> None:
    domain_of = {task.name: task.domain for task in schema.tasks}
    known = ", ".join(domain_of)
    for task in settings.tasks():
        if task not in domain_of:
            raise UserError(f"model 'exit' names task '{task}'; tasks in use are: {known}")
    unused = [task for task in domain_of if task not in settings.tasks()]
    if unused:
        used = ", ".join(settings.tasks())
        raise UserError(f"model 'exit' does not use task '{unused[0]}'; leave it out: tasks: [{used}]")
    target = domain_of[settings.target]
    for name, source in settings.sources.items():
        for task in (source.wanted, source.fit):
            if domain_of[task] != target:
                raise UserError(
                    f"model.sources.{name}: '{task}' must be a label of the rows of '{settings.target}', in '{target}'"
                )
        if source.own is not None and domain_of[source.own] == target:
            raise UserError(f"model.sources.{name}.own: '{source.own}' lies in '{target}', not in a source domain")
    for label in schema.tasks:
        if label.nullable and label.domain == target:
            raise UserError(
                f"model 'exit' adds all labels of a row in '{target}' up to its interest combination label, which is "
                f"unknown where one is missing: '{label.name}' cannot be nullable; leave such rows out of the files"
            )


def _diagnostics(run: DiagnosedRun) -> list[Diagnostic]:
    settings: ExitSettings = run.settings
    sources = {name: (source.wanted, source.fit) for name, source in settings.sources.items()}
    return [
        TransferProbabilities(run.schema, settings.target, sources),
        _by_scene(run.schema, settings, truth=True),
    ]


def _by_scene(schema: Schema, settings: ExitSettings, *, truth: bool = False) -> TransferByScene:
    fit = {name: source.fit for name, source in settings.sources.items()}
    return TransferByScene(schema, settings.target, settings.alone, fit, truth=truth)


EXIT = ModelSpec(
    ExitSettings,
    build_exit,
    auxiliary_scores=lambda settings: {settings.alone: settings.target},
    diagnostics=_diagnostics,
    report=lambda schema, settings: [_by_scene(schema, settings)],
)
