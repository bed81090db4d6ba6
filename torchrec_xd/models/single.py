"""One domain on its own: a multi-layer perceptron over all features, histories pooled by mean (MLP) or attention (DIN).

The reference that every transfer has to beat. DIN: Zhou et al. 2018, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.models.task import Output, RowVectors, TrainTask, logit_output, with_specific
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings, UserError


class SingleSettings(Settings):
    """A single-domain model; MKT's widths (section 4.1.3) are the defaults."""

    name: Literal["single"] = "single"
    widths: tuple[PositiveInt, ...] = (1024, 512, 64)
    sequence_pooling: Literal["attention", "mean"] = "attention"
    dropout: float = Field(default=0.0, ge=0, lt=1)


class SingleDomainModel(nn.Module):
    """`MLP(v_u ‖ v_seq ‖ v_shared ‖ v_spec)` of one domain, one output per task."""

    def __init__(self, schema: Schema, settings: SingleSettings) -> None:
        super().__init__()
        self.schema = schema
        (self.domain,) = schema.domains
        dims = layout(schema)
        count, dim = dims.specific[self.domain]
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        self.trunk = MLP(self.vectors.out_dim + count * dim, settings.widths, dropout=settings.dropout)
        self.heads = ModuleMap({task.name: nn.Linear(self.trunk.out_dim, 1) for task in schema.tasks})

    def forward(self, lookups: Lookups, batch: Batch, taught: Mapping[str, Tensor]) -> Output:
        """Binary cross entropy on the domain's labels."""
        rows = torch.cat(list(self.vectors(lookups).values()), dim=1)
        hidden = self.trunk(with_specific(rows, lookups, self.domain))
        return logit_output({name: self.heads[name](hidden) for name in self.heads.names}, self.schema, batch)


def build_single(schema: Schema, settings: SingleSettings, embeddings: EmbeddingSettings, seed: int) -> TrainTask:
    """A single-domain model.

    Raises:
        UserError: the schema has more than one domain.
    """
    if len(schema.domains) != 1:
        raise UserError(f"model 'single' reads one domain: set domains: [NAME], one of {', '.join(schema.domains)}")
    return TrainTask(Embeddings(schema, embeddings, seed), SingleDomainModel(schema, settings))
