"""MMoE: multi-gate mixture of experts (Ma et al. 2018, section 4.2); each task reads the rows of its domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.embeddings import Lookups
from torchrec_xd.models.joint import JointRows, JointSettings, Towers, Widths
from torchrec_xd.models.task import Output, task_rows
from torchrec_xd.modules.gates import ExpertGate
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP
from torchrec_xd.schema import Schema


class MMoESettings(JointSettings):
    """MMoE; MKT's choice for it (section 4.1.3) is the default."""

    name: Literal["mmoe"] = "mmoe"
    num_experts: PositiveInt = 3
    expert_widths: Widths = Field(default=(1024, 512), min_length=1)


class MultiGateMixtureOfExperts(nn.Module):
    """`y_k = h^k(f^k(x))`, `f^k(x) = sum_i g^k(x)_i f_i(x)`, `g^k(x) = softmax(W_gk x)` (eq. 6-8); k is a task."""

    def __init__(self, schema: Schema, settings: MMoESettings) -> None:
        super().__init__()
        self.rows = JointRows(schema, settings)
        in_dim, widths, count = self.rows.out_dim, settings.expert_widths, settings.num_experts
        self.experts = nn.ModuleList(MLP(in_dim, widths, dropout=settings.dropout) for _ in range(count))
        self.schema = schema
        self.gates = ModuleMap({task.name: ExpertGate(in_dim, count) for task in schema.tasks})
        self.towers = Towers(widths[-1], schema, settings)

    def forward(self, lookups: Lookups, batch: Batch, taught: Mapping[str, Tensor]) -> Output:
        """Binary cross entropy of every task; every expert sees all rows, a gate those of its task's domain."""
        x_BI = self.rows(lookups)
        said = [expert(x_BI) for expert in self.experts]
        hidden = {
            task: self.gates[task](x_BI[own], [expert_BW[own] for expert_BW in said])
            for task, own in task_rows(self.schema, batch).items()
        }
        output: Output = self.towers(hidden, batch)
        return output
