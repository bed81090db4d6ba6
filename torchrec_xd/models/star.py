"""STAR: star topology adaptive recommender (Sheng et al. 2021).

Shape legend: B_d rows of domain d, I input width, O outputs of a domain (as many as the largest number of tasks).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.blocks import Widths
from torchrec_xd.models.joint import JointRows, JointSettings, joint
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.modules.star import PartitionedNorm, StarLinear
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class StarSettings(JointSettings):
    """STAR; `tower_widths` are the hidden layers of its auxiliary network."""

    name: Literal["star"] = "star"
    widths: Widths = Field(default=(1024, 512, 64), min_length=1)
    """Hidden layers of the star."""


class StarTopologyAdaptiveRecommender(nn.Module):
    """`y = sigmoid(s_m + s_a)`: the star's logit and the auxiliary network's (section 3.5).

    The star normalises a domain's rows by themselves and runs them through layers whose weights are the shared ones
    times the domain's own; the auxiliary network is shared and reads an embedding of the domain next to the row.
    """

    def __init__(self, schema: Schema, settings: StarSettings) -> None:
        super().__init__()
        domains = tuple(schema.domains)
        self.outputs = {d: [task.name for task in schema.tasks if task.domain == d] for d in domains}
        self.rows = JointRows(schema, settings)
        dims = (self.rows.out_dim, *settings.widths, max(len(tasks) for tasks in self.outputs.values()))
        self.norm = PartitionedNorm(self.rows.out_dim, domains)
        self.layers = nn.ModuleList(StarLinear(i, o, domains) for i, o in pairwise(dims))
        self.dropout = nn.Dropout(settings.dropout)
        self.indicators = nn.ParameterDict({f"i_{d}": nn.Parameter(torch.randn(schema.dim)) for d in domains})
        self.auxiliary = MLP(
            self.rows.out_dim + schema.dim, (*settings.tower_widths, 1), head=True, dropout=settings.dropout
        )

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task; output i of a domain is its i-th task."""
        logits = {}
        for domain, x_BI in by_domain(self.rows(lookups), lookups.rows).items():
            logit_BO = self.star(x_BI, domain) + self.auxiliary_logit(x_BI, domain)
            logits.update({task: logit_BO[:, i : i + 1] for i, task in enumerate(self.outputs[domain])})
        return Predictions.from_logits(logits)

    def star(self, x_BI: Tensor, domain: str) -> Tensor:
        """`s_m` of one domain's rows, `[B_d, I] -> [B_d, O]`."""
        hidden: Tensor = self.norm(x_BI, domain)
        for layer in list(self.layers)[:-1]:
            hidden = self.dropout(torch.relu(layer(hidden, domain)))
        return self.layers[-1](hidden, domain)  # type: ignore[no-any-return]

    def auxiliary_logit(self, x_BI: Tensor, domain: str) -> Tensor:
        """`s_a` of one domain's rows, `[B_d, I] -> [B_d, 1]`."""
        indicator = self.indicators[f"i_{domain}"].expand(x_BI.shape[0], -1)
        return self.auxiliary(torch.cat([indicator, x_BI], dim=1))  # type: ignore[no-any-return]


STAR = ModelSpec(StarSettings, joint(StarTopologyAdaptiveRecommender), diagnostics=lambda run: overfitting(run.schema))
