"""PLE: progressive layered extraction as a model (Tang et al. 2020), with domains in the place of tasks.

The extraction itself, equations 2-4 and 6, is modules/ple.py: MKT's common knowledge extractor is made of it too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.blocks import Widths
from torchrec_xd.models.joint import JointRows, JointSettings, Towers, joint
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.ple import Experts, ProgressiveLayeredExtraction
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class PLESettings(JointSettings):
    """PLE; with one level it is CGC (section 4.1)."""

    name: Literal["ple"] = "ple"
    num_experts: PositiveInt = 1
    """Experts of each domain, per level."""
    num_shared_experts: PositiveInt = 1
    """Shared experts, per level."""
    levels: PositiveInt = 1
    """Extraction levels."""
    expert_widths: Widths = Field(default=(1024, 512), min_length=1)
    """Layers of an expert."""


class PLEModel(nn.Module):
    """`y_k = t^k(g^{k,N}(x))`: the last level's mixture of domain k, into a tower per task (section 4.2)."""

    def __init__(self, schema: Schema, settings: PLESettings) -> None:
        super().__init__()
        self.rows = JointRows(schema, settings)
        counts = settings.num_experts, settings.num_shared_experts
        domains = tuple(schema.domains)
        self.ple = ProgressiveLayeredExtraction(
            self.rows.out_dim,
            Experts(settings.expert_widths, *counts, settings.dropout),
            domains=domains,
            outputs=domains,
            levels=settings.levels,
        )
        self.towers = Towers(settings.expert_widths[-1], schema, settings)

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task."""
        predictions: Predictions = self.towers(self.ple(self.rows(lookups), lookups.rows))
        return predictions


PLE = ModelSpec(PLESettings, joint(PLEModel), diagnostics=lambda run: overfitting(run.schema))
