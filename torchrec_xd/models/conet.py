"""CoNet: collaborative cross networks (Hu et al. 2018), a tower per domain with connections between the towers.

Shape legend: B rows of the batch, B_d rows of domain d, I input width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.blocks import Widths
from torchrec_xd.models.joint import JointRows, JointSettings, Towers, joint
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.cross_connection import CrossConnection
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class CoNetSettings(JointSettings):
    """CoNet; `tower_widths` are the layers above the cross connections, not connected to other domains."""

    name: Literal["conet"] = "conet"
    widths: Widths = Field(default=(1024, 512), min_length=1)
    """Cross-connected layers."""


class CollaborativeCrossNetworks(nn.Module):
    """Every row goes through every domain's tower; the output of the row's own domain is used.

    Each layer of a tower receives the other towers' activations.

    The paper's joint loss is the sum of the domains' (its multi-task objective), as here.
    """

    def __init__(self, schema: Schema, settings: CoNetSettings) -> None:
        super().__init__()
        self.domains = tuple(schema.domains)
        self.rows = JointRows(schema, settings)
        dims = (self.rows.out_dim, *settings.widths)
        self.layers = nn.ModuleList(CrossConnection(i, o, self.domains) for i, o in pairwise(dims))
        self.dropout = nn.Dropout(settings.dropout)
        self.towers = Towers(dims[-1], schema, settings)

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task."""
        states = dict.fromkeys(self.domains, self.rows(lookups))
        *below, last = self.layers
        for layer in below:
            states = {domain: self.dropout(layer(states, domain)) for domain in self.domains}
        # Outputs of the last layer's other towers are not used: a row passes through its own domain's only.
        cuts = {name: by_domain(state, lookups.rows) for name, state in states.items()}
        hidden = {d: self.dropout(last({name: cut[d] for name, cut in cuts.items()}, d)) for d in self.domains}
        predictions: Predictions = self.towers(hidden)
        return predictions


CONET = ModelSpec(CoNetSettings, joint(CollaborativeCrossNetworks), diagnostics=lambda run: overfitting(run.schema))
