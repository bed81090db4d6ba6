"""MMoE: multi-gate mixture of experts (Ma et al. 2018, section 4.2); each task reads the rows of its domain."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field, PositiveInt
from torch import nn

from torchrec_xd.diagnostics.overfitting import overfitting
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.blocks import Widths
from torchrec_xd.models.joint import JointRows, JointSettings, joint
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.modules.gates import ExpertGate
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.modules.rows import by_domain
from torchrec_xd.outputs import Predictions
from torchrec_xd.schema import Schema


class MMoESettings(JointSettings):
    """MMoE; MKT's choice for it (section 4.1.3) is the default."""

    name: Literal["mmoe"] = "mmoe"
    num_experts: PositiveInt = 3
    """Experts, which all tasks share."""
    expert_widths: Widths = Field(default=(1024, 512), min_length=1)
    """Layers of an expert."""


class MultiGateMixtureOfExperts(nn.Module):
    """`y_k = h^k(f^k(x))`, `f^k(x) = sum_i g^k(x)_i f_i(x)`, `g^k(x) = softmax(W_gk x)` (eq. 6-8); k is a task."""

    def __init__(self, schema: Schema, settings: MMoESettings) -> None:
        super().__init__()
        self.rows = JointRows(schema, settings)
        in_dim, widths, count = self.rows.out_dim, settings.expert_widths, settings.num_experts
        self.experts = nn.ModuleList(MLP(in_dim, widths, dropout=settings.dropout) for _ in range(count))
        self.schema = schema
        self.gates = ModuleMap({task.name: ExpertGate(in_dim, count) for task in schema.tasks})
        self.towers = ModuleMap(
            {task.name: MLP(widths[-1], (*settings.tower_widths, 1), head=True) for task in schema.tasks}
        )

    def forward(self, lookups: Lookups) -> Predictions:
        """A logit per task; every expert sees all rows, a gate those of its task's domain."""
        x_BI = self.rows(lookups)
        own_BI = by_domain(x_BI, lookups.rows)
        expert_BW = [by_domain(expert(x_BI), lookups.rows) for expert in self.experts]
        logits = {}
        for task in self.schema.tasks:
            tower, gate = cast(MLP, self.towers[task.name]), self.gates[task.name]
            # A gate's weights add up to 1, so that mixing behind a linear layer comes to the same, and is narrower.
            first = [tower.first(rows_BW[task.domain]) for rows_BW in expert_BW]
            logits[task.name] = tower.rest(gate(own_BI[task.domain], first))
        return Predictions.from_logits(logits)


MMOE = ModelSpec(MMoESettings, joint(MultiGateMixtureOfExperts), diagnostics=lambda run: overfitting(run.schema))
