"""MKT: two-stage knowledge transfer between entities with different features (arXiv 2402.19101).

Stage 1 trains the multi-entity model (MEM) on all domains; stage 2 freezes it and trains a target-entity model (TEM) of
its own tables and networks, which takes four of MEM's vectors in through gates.

Shape legend: B rows of the batch, B_d rows of domain d, N specific features, D embedding width, W knowledge width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.knowledge import KnowledgeCosines, logged_cosines
from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.diagnostics.worth import feature_worth
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout, weight_prefixes
from torchrec_xd.errors import UserError
from torchrec_xd.losses import Penalty, polarized_distribution_loss
from torchrec_xd.models.blocks import RowVectors, side_by_side, with_specific
from torchrec_xd.models.cke import LEFT_BEHIND, CommonKnowledgeExtractor, independent_extractors
from torchrec_xd.models.mkt_settings import FinetuneSettings, PretrainSettings
from torchrec_xd.models.model import CrossEntropy, Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.teacher import Teacher
from torchrec_xd.models.transfer import SourceRun, Transfer, check_common_features, check_inputs, check_same_features
from torchrec_xd.modules.extractors import StarTowers, TaskTowers
from torchrec_xd.modules.gates import GatedLinearUnit
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.outputs import Losses, Predictions
from torchrec_xd.schema import Schema


class MultiEntityModel(nn.Module):
    """MEM, stage 1: common and independent knowledge per domain, held apart by PDL, into a tower per task."""

    def __init__(self, schema: Schema, settings: PretrainSettings) -> None:
        super().__init__()
        self.schema = schema
        self.common = CommonKnowledgeExtractor(schema, settings, tuple(schema.domains))
        self.independent = independent_extractors(schema, settings, self.common.vectors.out_dim)
        self.towers = _towers(schema, settings)

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task, from a domain's common and independent knowledge."""
        vectors, common = self.common(lookups)
        rows_BV = side_by_side(vectors, lookups)
        independent = {
            domain: self.independent[domain](with_specific(own_BV, lookups, domain))
            for domain, own_BV in by_domain(rows_BV, lookups.rows).items()
        }
        pairs = {domain: (common[domain], independent[domain]) for domain in lookups.rows}
        logits = self.towers({domain: torch.cat(pair, dim=1) for domain, pair in pairs.items()})
        return Predictions.from_logits(logits, pairs)


def _towers(schema: Schema, settings: PretrainSettings) -> StarTowers | TaskTowers:
    """What MEM predicts with, from common and independent knowledge."""
    towers = StarTowers if settings.extractor == "star" else TaskTowers
    tasks = {task.name: task.domain for task in schema.tasks}
    return towers(2 * settings.expert_widths[-1], settings.tower_widths, tasks)


@dataclass(frozen=True)
class MultiEntityLoss:
    """`L_MEM = sum_d BCE_d + gamma L_pdl` (section 3.2.4, eq. 13)."""

    cross_entropy: CrossEntropy
    gamma: float
    pdl: Penalty = "cosine"

    def __call__(self, predictions: Predictions, batch: Batch) -> Losses:
        """The parts of the loss; monitors are the mean cosines of the domains that have rows."""
        cosines = polarized_distribution_loss(predictions.vectors)
        parts = self.cross_entropy(predictions, batch).parts
        if self.gamma:
            terms = cosines if self.pdl == "cosine" else polarized_distribution_loss(predictions.vectors, self.pdl)
            parts["pdl"] = self.gamma * torch.stack(list(terms.values())).sum()
        monitored = {d: cosine.detach() for d, cosine in cosines.items() if len(predictions.vectors[d][0])}
        return Losses(parts, {f"cosine/{domain}": cosine for domain, cosine in monitored.items()})


class TransferredKnowledge(nn.Module):
    """The part of MEM that serves the target: its vectors and common knowledge. Weights come from a stage-1 run.

    With `independent`, the target's independent knowledge stands behind the common one: `g_com ‖ g_ind`.
    """

    def __init__(self, schema: Schema, settings: PretrainSettings, target: str, *, independent: bool) -> None:
        super().__init__()
        self.target = target
        self.common = CommonKnowledgeExtractor(schema, settings, (target,))
        in_dim = self.common.vectors.out_dim
        self.independent = independent_extractors(schema.only((target,)), settings, in_dim) if independent else None
        self.width = settings.expert_widths[-1]
        self.dims = {**self.common.vectors.dims, "common": self.width * (2 if independent else 1)}

    def forward(self, lookups: Lookups) -> dict[str, Tensor]:
        """`user`, `sequence`, `shared` and `common`, of the target's rows: all there are in stage 2."""
        vectors, common = self.common(lookups)
        knowledge = common[self.target]
        if self.independent is not None:
            rows = with_specific(side_by_side(vectors, lookups), lookups, self.target)
            knowledge = torch.cat([knowledge, self.independent[self.target](rows)], dim=1)
        return {**vectors, "common": knowledge}


class TargetEntityModel(nn.Module):
    """TEM, stage 2: the target's own model, with `v + GLU(v^MEM)` in four places (section 3.3)."""

    def __init__(
        self,
        schema: Schema,
        settings: FinetuneSettings,
        pretrained: PretrainSettings,
        teacher_dims: Mapping[str, int],
    ) -> None:
        super().__init__()
        (self.target,) = schema.domains
        knowledge_dim = pretrained.expert_widths[-1]
        dims = layout(schema)
        count, dim = dims.specific[self.target]
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        self.pairs = settings.heads == "towers"
        in_dim, widths = self.vectors.out_dim + count * dim, (*settings.widths, knowledge_dim)
        # What takes the place of independent knowledge may be negative where that may be.
        self.cross = MLP(in_dim, widths, head=self.pairs and pretrained.linear, dropout=settings.dropout)
        own_dims = {**self.vectors.dims, "common": knowledge_dim}
        gates = {
            name: GatedLinearUnit(
                teacher_dims[name],
                own_dim,
                state_dim=own_dim if settings.gates == "dynamic" else 0,
                bias=settings.gate_bias,
            )
            for name, own_dim in own_dims.items()
        }
        self.gates = ModuleMap(gates)
        if self.pairs:
            for gate in gates.values():
                gate.begin_with_nothing()
            gates["common"].begin_with_everything()
            self.heads = _towers(schema, pretrained)
        else:
            tasks = {task.name: task.domain for task in schema.tasks}
            self.heads = TaskTowers(knowledge_dim, settings.head_widths, tasks)

    def forward(self, lookups: Lookups, teacher_outputs: Mapping[str, Tensor]) -> Predictions:
        """A logit per task, from `g_final = g_cross + GLU(g_com)`, or from the two as a pair."""
        vectors = self.vectors(lookups)
        gated = {name: own + self.gates[name](teacher_outputs[name], own) for name, own in vectors.items()}
        cross = self.cross(with_specific(side_by_side(gated, lookups), lookups, self.target))
        passed = self.gates["common"](teacher_outputs["common"], cross)
        final = torch.cat([passed, cross], dim=1) if self.pairs else cross + passed
        return Predictions.from_logits(self.heads({self.target: final}))


def build_pretrain(schema: Schema, settings: PretrainSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """Stage 1: MEM over all domains of the schema."""
    loss = MultiEntityLoss(CrossEntropy(schema, settings.domain_weight), settings.gamma, settings.pdl)
    return Model(Embeddings(schema, embeddings, seed), MultiEntityModel(schema, settings), loss)


def _begins_as(here: SourceRun, there: SourceRun) -> dict[str, str]:
    """Prefixes of `warm_start`: what TEM and MEM both have."""
    student, pretrained = here.settings, there.settings
    if not student.warm_start:
        return {}
    (target,) = here.schema.domains
    ours, theirs = weight_prefixes(here.schema), weight_prefixes(there.schema)
    prefixes = {f"embeddings.{ours[key]}": f"embeddings.{theirs[key]}" for key in ours if key in theirs}
    if student.sequence_pooling == pretrained.sequence_pooling:
        prefixes["net.vectors."] = "net.common.vectors."
    if student.widths == pretrained.expert_widths[:-1]:
        prefixes["net.cross."] = f"net.independent.m_{target}."
    if student.heads == "towers":
        prefixes["net.heads."] = "net.towers."
    return prefixes


TRANSFER = Transfer(
    source="mkt_pretrain",
    prefixes={
        "teacher.embeddings.": "embeddings.",
        "teacher.net.common.": "net.common.",
        "teacher.net.independent.": "net.independent.",
    },
    further=_begins_as,
    prunable=("embeddings.", "net.common.hfa.", *LEFT_BEHIND, "net.independent.", "net.towers."),
)
"""Stage 2 takes MEM's common knowledge and the tables that feed it, frozen; what serves other domains stays behind."""


def build_finetune(
    schema: Schema, settings: FinetuneSettings, embeddings: EmbeddingSettings, seed: int, source: SourceRun
) -> Model:
    """Stage 2: TEM of the schema's one domain, with those parts of MEM that feed it.

    Source towers, independent extractors, source experts of the last level and tables that only sources read are
    pruned: they are not built, cost nothing and are not exported.

    Raises:
        UserError: more than one domain, or one that the stage-1 run has not seen or saw with other features.
    """
    if len(schema.domains) != 1:
        raise UserError(f"stage 2 trains one target: set domains: [NAME], one of {', '.join(schema.domains)}")
    (target,) = schema.domains
    check_same_features(source.schema.only((target,)), schema)
    check_common_features(source.schema, schema)
    independent = settings.knowledge == "common_and_independent"
    knowledge = TransferredKnowledge(source.schema, source.settings, target, independent=independent)
    teacher = Teacher(Embeddings(source.schema, source.embeddings, seed, batches=schema), knowledge)
    tables = Embeddings(schema, embeddings, seed)
    if settings.warm_start and settings.widths == source.settings.expert_widths[:-1]:
        check_inputs(source.schema, schema, target)
    if settings.heads == "towers":
        _check_towers(schema, settings, source)
    net = TargetEntityModel(schema, settings, source.settings, knowledge.dims)
    return Model(tables, net, CrossEntropy(schema), teacher)


def _check_towers(schema: Schema, settings: FinetuneSettings, source: SourceRun) -> None:
    widths, theirs = list(settings.head_widths), list(source.settings.tower_widths)
    if widths != theirs:
        raise UserError(f"model.head_widths: {widths}, and of heads: towers they are stage 1's tower_widths, {theirs}")
    most = max(Counter(task.domain for task in source.schema.tasks).values())
    if source.settings.extractor == "star" and len(schema.tasks) != most:
        raise UserError(
            f"model.heads: towers of stage 1's extractor star have {most} outputs, as many as the domain with most "
            f"tasks; the target has {len(schema.tasks)}: set heads: own"
        )


PRETRAIN = ModelSpec(
    PretrainSettings,
    build_pretrain,
    diagnostics=lambda run: [
        *feature_worth(run.net, run.schema),  # copies the net: before others watch it
        KnowledgeCosines(run.net, logged_cosines(run.folder, run.schema), asked=run.settings.gamma > 0),
        *overfitting(run.schema),
    ],
)
FINETUNE = ModelSpec(FinetuneSettings, build_finetune, TRANSFER)
