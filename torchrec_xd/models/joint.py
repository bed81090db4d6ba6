"""The frame of the joint baselines: all domains' rows at one width, and a tower per task.

Each of them is one class that computes how `[B, I]` rows become hidden vectors of every domain.

Shape legend: B rows of the batch, B_d rows of domain d, I input width, W hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.models.blocks import RowVectors, SpecificAlignment, Widths
from torchrec_xd.models.model import CrossEntropy, Model
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import concat
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings


class TowerSettings(Settings):
    """Settings of every joint baseline."""

    aligned_dim: PositiveInt = 64
    """Width to which one linear layer brings every domain's specific features."""
    tower_widths: Widths = (64,)
    """Hidden layers of the tower that each task has."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability after each hidden layer."""
    domain_weight: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Domain to a factor on its loss. Default: 1."""


class JointSettings(TowerSettings):
    """Settings of a joint baseline that reads rows as they are, histories pooled."""

    sequence_pooling: Literal["attention", "mean"] = "attention"
    """How a behaviour sequence becomes one vector: target attention (DIN) or the mean."""


class JointRows(nn.Module):
    """`v_u ‖ v_seq ‖ v_shared ‖ aligned v_spec`: rows of all domains, alike."""

    def __init__(self, schema: Schema, settings: JointSettings) -> None:
        super().__init__()
        dims = layout(schema)
        self.vectors = RowVectors(dims, settings.sequence_pooling)
        specific = any(count for count, _ in dims.specific.values())
        self.align = SpecificAlignment(dims, settings.aligned_dim, schema.domains) if specific else None
        self.out_dim = self.vectors.out_dim + (settings.aligned_dim if specific else 0)

    def forward(self, lookups: Lookups) -> Tensor:
        """`[B, out_dim]`."""
        aligned = [] if self.align is None else [self.align(lookups)]
        return concat([*self.vectors(lookups).values(), *aligned])


class Towers(nn.Module):
    """The domains' hidden vectors to a logit per task."""

    def __init__(self, in_dim: int, schema: Schema, settings: TowerSettings) -> None:
        super().__init__()
        self.schema = schema
        widths = (*settings.tower_widths, 1)
        self.towers = ModuleMap({task.name: MLP(in_dim, widths, head=True) for task in schema.tasks})

    def forward(self, hidden: Mapping[str, Tensor]) -> Predictions:
        """From the hidden vectors of every domain's rows, `[B_d, W]`."""
        logits = {task.name: self.towers[task.name](hidden[task.domain]) for task in self.schema.tasks}
        return Predictions.from_logits(logits)


def joint(net: Callable[[Schema, Any], nn.Module]) -> Callable[..., Model]:
    """A builder of joint baselines: `net(schema, settings)` on the tables of all domains."""

    def build(schema: Schema, settings: TowerSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
        loss = CrossEntropy(schema, settings.domain_weight)
        return Model(Embeddings(schema, embeddings, seed), net(schema, settings), loss)

    return build
