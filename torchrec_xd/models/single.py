"""One domain on its own: a multi-layer perceptron over all features, histories pooled by mean (MLP) or attention (DIN).

The reference that every transfer has to beat. DIN: Zhou et al. 2018, section 4.3.

With `init_from` it is also the plainest transfer, vanilla fine-tuning: a run on the source domain alone, then all of
its weights continued on the target. What only the target has starts fresh: its specific features' tables and the linear
layer that brings them to the width of the source's. With the same domain on both sides it is the next slice of time.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn

from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout, weight_prefixes
from torchrec_xd.errors import UserError
from torchrec_xd.models.blocks import NetSettings, RowVectors, SpecificAlignment, side_by_side, with_specific
from torchrec_xd.models.model import CrossEntropy, Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.transfer import SourceRun, Transfer, check_common_features
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class SingleSettings(NetSettings):
    """A single-domain model; MKT's widths (section 4.1.3) are the defaults."""

    name: Literal["single"] = "single"
    widths: tuple[PositiveInt, ...] = (1024, 512, 64)
    """Hidden layers of the trunk."""
    aligned_dim: PositiveInt | None = None
    """Width to which a linear layer brings the specific features, so that another domain can go on with the rest.
    Default: they are read as they are."""


class SingleDomainModel(nn.Module):
    """`MLP(v_u ‖ v_seq ‖ v_shared ‖ v_spec)` of one domain, one output per task."""

    def __init__(self, schema: Schema, settings: SingleSettings) -> None:
        super().__init__()
        (self.domain,) = schema.domains
        dims = layout(schema)
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        self.align = SpecificAlignment(dims, settings.aligned_dim, schema.domains) if settings.aligned_dim else None
        self.trunk = MLP(
            self.vectors.out_dim + specific_dim(schema, settings), settings.widths, dropout=settings.dropout
        )
        self.heads = ModuleMap({task.name: nn.Linear(self.trunk.out_dim, 1) for task in schema.tasks})

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task."""
        rows = side_by_side(self.vectors(lookups), lookups)
        if self.align is None:
            rows = with_specific(rows, lookups, self.domain)
        else:
            rows = torch.cat([rows, self.align(lookups)], dim=1)
        hidden = self.trunk(rows)
        return Predictions.from_logits({name: self.heads[name](hidden) for name in self.heads.names})


def specific_dim(schema: Schema, settings: SingleSettings) -> int:
    """Width at which a single-domain model reads its specific features."""
    ((count, dim),) = layout(schema).specific.values()
    return settings.aligned_dim or count * dim


def build_single(
    schema: Schema,
    settings: SingleSettings,
    embeddings: EmbeddingSettings,
    seed: int,
    source: SourceRun | None = None,
) -> Model:
    """A single-domain model; with `source`, one that can go on with that run's weights.

    Raises:
        UserError: the schema has more than one domain, or the two runs' models are not alike.
    """
    if len(schema.domains) != 1:
        raise UserError(f"model 'single' reads one domain: set domains: [NAME], one of {', '.join(schema.domains)}")
    if source is not None:
        _check_continues(schema, settings, source.schema, source.settings)
    return Model(Embeddings(schema, embeddings, seed), SingleDomainModel(schema, settings), CrossEntropy(schema))


def _check_continues(schema: Schema, settings: SingleSettings, source: Schema, trained: SingleSettings) -> None:
    for key in ("widths", "aligned_dim", "sequence_pooling"):
        here, there = getattr(settings, key), getattr(trained, key)
        if here != there:
            raise UserError(f"model.{key}: {here} here, {there} in the run of init_from: its weights need the same")
    check_common_features(source, schema)
    everyones = [{f.column for f in s.features if f.group != "specific"} for s in (source, schema)]
    for column in sorted(everyones[0] ^ everyones[1]):
        raise UserError(f"feature '{column}' is in one of the two runs only; leave it out: without: [{column}]")
    if settings.aligned_dim is None and tuple(source.domains) != tuple(schema.domains):
        raise UserError(
            f"the specific features of '{', '.join(schema.domains)}' are not those of '{', '.join(source.domains)}': "
            "set model.aligned_dim in both runs, so that the rest of the model can go on"
        )


def _continued(begun: SourceRun, trained: SourceRun) -> dict[str, str]:
    here, there = begun.schema, trained.schema
    ours, theirs = weight_prefixes(here), weight_prefixes(there)
    prefixes = {f"embeddings.{ours[key]}": f"embeddings.{theirs[key]}" for key in ours if key in theirs}
    if here.domains.keys() == there.domains.keys():
        prefixes["net.align."] = "net.align."
    if len(here.tasks) == len(there.tasks):
        tasks = zip(here.tasks, there.tasks, strict=True)
        prefixes.update({f"net.heads.m_{new.name}.": f"net.heads.m_{old.name}." for new, old in tasks})
    return prefixes


CONTINUE = Transfer(
    source="single",
    prefixes={"net.vectors.": "net.vectors.", "net.trunk.": "net.trunk."},
    prunable=("embeddings.", "net.align.", "net.heads."),
    further=_continued,
    required=False,
)
"""Every table and dense line that both domains read, the attention, the trunk, and the heads where both have equally
many tasks (in their order); nothing of it is frozen."""


SINGLE = ModelSpec(SingleSettings, build_single, CONTINUE)
