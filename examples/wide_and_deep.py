"""A model of your own, in a package of your own: wide and deep, for any number of domains.

A config names it as `model: {name: "wide_and_deep:MODEL", widths: [64, 32]}`, with this file's folder on PYTHONPATH or
the file in an installed package. Everything else works as for the models that come with torchrec_xd: sharded tables,
checkpoints, resume, metrics, studies.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd import CrossEntropy, Model, ModelSpec, Predictions, Schema, Settings
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups, layout
from torchrec_xd.models.blocks import RowVectors
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain, concat


class WideAndDeepSettings(Settings):
    """The keys under `model:`; a key that is not listed here is an error."""

    name: str = "wide_and_deep"
    widths: tuple[PositiveInt, ...] = (64, 32)
    """Layers of the deep part."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class WideAndDeep(nn.Module):
    """A linear and a deep part that all domains share, and an output per task.

    The net knows nothing of devices, labels or shards: from what a batch looked up to a logit per task.
    """

    def __init__(self, schema: Schema, settings: WideAndDeepSettings) -> None:
        super().__init__()
        self.schema = schema
        self.vectors = RowVectors(layout(schema), "mean")
        self.deep = MLP(self.vectors.out_dim, settings.widths, dropout=settings.dropout)
        names = [task.name for task in schema.tasks]
        self.wide_heads = ModuleMap({name: nn.Linear(self.vectors.out_dim, 1, bias=False) for name in names})
        self.deep_heads = ModuleMap({name: nn.Linear(self.deep.out_dim, 1) for name in names})

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task, for the rows of the task's domain."""
        rows: Tensor = concat(self.vectors(lookups).values())
        wide, deep = by_domain(rows, lookups.rows), by_domain(self.deep(rows), lookups.rows)
        return Predictions.from_logits(
            {
                task.name: self.wide_heads[task.name](wide[task.domain]) + self.deep_heads[task.name](deep[task.domain])
                for task in self.schema.tasks
            }
        )


def build(schema: Schema, settings: WideAndDeepSettings, embeddings: EmbeddingSettings, seed: int) -> Model:
    """Tables, net and loss; first weights are drawn here, under the run's seed."""
    return Model(Embeddings(schema, embeddings, seed), WideAndDeep(schema, settings), CrossEntropy(schema))


MODEL = ModelSpec(WideAndDeepSettings, build)
