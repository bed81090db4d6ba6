"""Shared bottom: one trunk for all domains, a tower per task (Caruana 1997; Ma et al. 2018, section 3.1, eq. 1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.blocks import Widths
from torchrec_xd.models.joint import JointRows, JointSettings, Towers, joint
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class SharedBottomSettings(JointSettings):
    """Shared bottom; the widths that MKT gives joint models (section 4.1.3) are the defaults."""

    name: Literal["shared_bottom"] = "shared_bottom"
    widths: Widths = Field(default=(1024, 512), min_length=1)
    """Layers of the trunk."""


class SharedBottom(nn.Module):
    """`y_k = h^k(f(x))` (eq. 1)."""

    def __init__(self, schema: Schema, settings: SharedBottomSettings) -> None:
        super().__init__()
        self.rows = JointRows(schema, settings)
        self.trunk = MLP(self.rows.out_dim, settings.widths, dropout=settings.dropout)
        self.towers = Towers(self.trunk.out_dim, schema, settings)

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task."""
        hidden_BW = self.trunk(self.rows(lookups))
        predictions: Predictions = self.towers(by_domain(hidden_BW, lookups.rows))
        return predictions


SHARED_BOTTOM = ModelSpec(SharedBottomSettings, joint(SharedBottom), diagnostics=lambda run: overfitting(run.schema))
