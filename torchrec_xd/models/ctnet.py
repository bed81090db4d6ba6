"""CTNet: continual transfer network (Liu et al. 2023), a target tower that a trained source tower keeps feeding.

The source tower is a `single` run of the source domain, frozen: only what feeds the adapters is kept of it. Rows of the
target go through both towers; where they lack a feature of the source, it reads as zero there.

Training continues in slices of time: the first run starts from the source's run, each further one from the run before
it, with every weight of it.

Shape legend: B rows of the target, W width of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.errors import UserError
from torchrec_xd.models.blocks import NetSettings, RowVectors, side_by_side, with_specific
from torchrec_xd.models.model import CrossEntropy, Model
from torchrec_xd.models.single import SingleSettings, specific_dim
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.teacher import Teacher
from torchrec_xd.models.transfer import SourceRun, Transfer, check_common_features
from torchrec_xd.modules.gates import GatedLinearUnit
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class CTNetSettings(NetSettings):
    """CTNet's target tower; the source's is that of the run that `init_from` names."""

    name: Literal["ctnet"] = "ctnet"
    widths: tuple[PositiveInt, ...] = Field(default=(1024, 512, 64), min_length=1)
    """Layers of the target tower: as many as the source's, of any width."""


class SourceTower(nn.Module):
    """The layers of a single-domain model, for rows of another domain. Weights come from its run."""

    def __init__(self, schema: Schema, settings: SingleSettings) -> None:
        super().__init__()
        self.vectors = RowVectors(layout(schema), settings.sequence_pooling)
        self.specific_dim = specific_dim(schema, settings)
        self.trunk = MLP(self.vectors.out_dim + self.specific_dim, settings.widths, dropout=settings.dropout)
        self.widths = settings.widths

    def forward(self, lookups: Lookups) -> dict[str, Tensor]:
        """`layer_0`, `layer_1`, ... to the activations of each layer for all rows, `[B, W]`."""
        rows = side_by_side(self.vectors(lookups), lookups)
        hidden = torch.cat([rows, rows.new_zeros(rows.shape[0], self.specific_dim)], dim=1)
        outputs: dict[str, Tensor] = {}
        for module in self.trunk:
            hidden = module(hidden)
            if not isinstance(module, nn.Linear):
                outputs[f"layer_{len(outputs)}"] = hidden
        return outputs


class ContinualTransferNetwork(nn.Module):
    """`z_l = ReLU(W_l z_{l-1} + b_l) + GLU_l(z_l^source)`: the adapter of every layer adds the source's activations."""

    def __init__(self, schema: Schema, settings: CTNetSettings, source_widths: tuple[int, ...]) -> None:
        super().__init__()
        (self.domain,) = schema.domains
        dims = layout(schema)
        count, dim = dims.specific[self.domain]
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        widths = (self.vectors.out_dim + count * dim, *settings.widths)
        self.layers = nn.ModuleList(MLP(i, (o,), dropout=settings.dropout) for i, o in pairwise(widths))
        self.adapters = nn.ModuleList(
            GatedLinearUnit(source, own) for source, own in zip(source_widths, settings.widths, strict=True)
        )
        self.heads = ModuleMap({task.name: nn.Linear(widths[-1], 1) for task in schema.tasks})

    def forward(self, lookups: Lookups, teacher_outputs: Mapping[str, Tensor]) -> Predictions:
        """A logit per task."""
        rows = side_by_side(self.vectors(lookups), lookups)
        hidden = with_specific(rows, lookups, self.domain)
        for i, (layer, adapter) in enumerate(zip(self.layers, self.adapters, strict=True)):
            own = layer(hidden)
            hidden = own + adapter(teacher_outputs[f"layer_{i}"], own)
        return Predictions.from_logits({name: self.heads[name](hidden) for name in self.heads.names})


FROM_SOURCE = Transfer(
    source="single",
    prefixes={
        "teacher.embeddings.": "embeddings.",
        "teacher.net.vectors.": "net.vectors.",
        "teacher.net.trunk.": "net.trunk.",
    },
    prunable=("embeddings.", "net.align.", "net.heads."),
    slices=True,
)
"""The source tower and the tables that it reads on rows of the target, frozen; its head and what reads the source's
specific features stay behind."""


def build_ctnet(
    schema: Schema, settings: CTNetSettings, embeddings: EmbeddingSettings, seed: int, source: SourceRun
) -> Model:
    """The target tower of the schema's one domain, with the source tower.

    Raises:
        UserError: more than one domain, towers of different height, or features that mean something else in the source.
    """
    source_settings: SingleSettings = source.settings
    if len(schema.domains) != 1:
        raise UserError(f"model 'ctnet' trains one target: set domains: [NAME], one of {', '.join(schema.domains)}")
    if len(source_settings.widths) != len(settings.widths):
        raise UserError(
            f"model.widths: {len(settings.widths)} layers, the source tower has {len(source_settings.widths)} "
            f"({', '.join(map(str, source_settings.widths))}); the towers are joined layer by layer: name as many"
        )
    check_common_features(source.schema, schema)
    teacher = Teacher(
        Embeddings(source.schema, source.embeddings, seed, batches=schema), SourceTower(source.schema, source_settings)
    )
    tables = Embeddings(schema, embeddings, seed)
    net = ContinualTransferNetwork(schema, settings, source_settings.widths)
    return Model(tables, net, CrossEntropy(schema), teacher)


CTNET = ModelSpec(CTNetSettings, build_ctnet, FROM_SOURCE)
