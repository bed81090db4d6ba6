"""FiBiNet: which features matter, and how they go together, in one domain (Huang et al. 2019).

Shape legend: B rows, F fields (every feature is one; a sequence pooled), D embedding width, P pairs of fields.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn

from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.models.blocks import NetSettings, RowVectors, side_by_side, with_specific
from torchrec_xd.models.model import CrossEntropy, Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.fibinet import BilinearInteraction, Kernel, SqueezeExcitation
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class FiBiNetSettings(NetSettings):
    """FiBiNet; MKT's widths for single-domain nets (section 4.1.3) are the defaults."""

    name: Literal["fibinet"] = "fibinet"
    widths: tuple[PositiveInt, ...] = (1024, 512, 64)
    """Hidden layers of the deep part."""
    reduction: PositiveInt = 3
    """How many times narrower the SENet's middle is than the number of fields."""
    bilinear: Kernel = "interaction"
    """Whose matrix a pair of fields is multiplied by: one for all, the first field's (each), its own (interaction)."""


class FiBiNet(nn.Module):
    """`MLP(bilinear(E) ‖ bilinear(SENet(E)))` plus a linear part, one output per task (sections 3.4-3.6, eq. 7-9).

    The paper's linear part has a weight per id; here it reads the embeddings, so that it needs no tables of width 1.
    """

    def __init__(self, schema: Schema, settings: FiBiNetSettings) -> None:
        super().__init__()
        (self.domain,) = schema.domains
        dims = layout(schema)
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        self.dim = common_dim(schema)
        self.num_fields = num_fields = len(schema.features)
        self.senet = SqueezeExcitation(num_fields, settings.reduction)
        self.raw = BilinearInteraction(num_fields, self.dim, settings.bilinear)
        self.weighed = BilinearInteraction(num_fields, self.dim, settings.bilinear)
        pairs = num_fields * (num_fields - 1) // 2
        self.trunk = MLP(2 * pairs * self.dim, settings.widths, dropout=settings.dropout)
        self.linear = ModuleMap({task.name: nn.Linear(num_fields * self.dim, 1) for task in schema.tasks})
        self.heads = ModuleMap({task.name: nn.Linear(self.trunk.out_dim, 1, bias=False) for task in schema.tasks})

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task."""
        rows = with_specific(side_by_side(self.vectors(lookups), lookups), lookups, self.domain)
        emb_BFD = rows.view(rows.shape[0], self.num_fields, self.dim)
        pairs = torch.cat([self.raw(emb_BFD), self.weighed(self.senet(emb_BFD))], dim=1)
        hidden = self.trunk(pairs.flatten(1))
        logits = {name: self.linear[name](rows) + self.heads[name](hidden) for name in self.heads.names}
        return Predictions.from_logits(logits)


def common_dim(schema: Schema) -> int:
    """The embedding width of every feature.

    Raises:
        UserError: features differ in it.
    """
    columns: dict[int, list[str]] = {}
    for feature in schema.features:
        columns.setdefault(schema.dim_of(feature), []).append(feature.column)
    if len(columns) > 1:
        found = "; ".join(f"{dim}: {', '.join(names)}" for dim, names in sorted(columns.items()))
        raise UserError(f"model 'fibinet' multiplies features pair by pair: give all the same dim ({found})")
    (dim,) = columns
    return dim


def build_fibinet(schema: Schema, settings: FiBiNetSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """FiBiNet of the schema's one domain.

    Raises:
        UserError: the schema has more than one domain, fewer than two features, or features of several widths.
    """
    if len(schema.domains) != 1:
        raise UserError(f"model 'fibinet' reads one domain: set domains: [NAME], one of {', '.join(schema.domains)}")
    if len(schema.features) < 2:
        raise UserError("model 'fibinet' multiplies features pair by pair, and the schema has only one")
    return Model(Embeddings(schema, embeddings, seed), FiBiNet(schema, settings), CrossEntropy(schema))


FIBINET = ModelSpec(FiBiNetSettings, build_fibinet)
