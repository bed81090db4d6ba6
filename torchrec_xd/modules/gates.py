"""Gates: a softmax over experts, and gated linear units that let knowledge through.

Shape legend: B rows, E experts, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ExpertGate(nn.Module):
    """Softmax gate of a mixture of experts: `sum_e softmax(W x)_e expert_e` (PLE, Tang et al. 2020, eq. 2-4)."""

    def __init__(self, in_dim: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, num_experts, bias=False)

    def forward(self, x: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """Gate input `[B, in_dim]` and E expert outputs `[B, W]` to their mixture `[B, W]`."""
        # One expert after the other: no copy of all of them side by side, no product of tiny matrices per row.
        gate_BE = torch.softmax(self.linear(x), dim=1).to(experts[0].dtype)
        mixed_BW = gate_BE[:, :1] * experts[0]
        for e in range(1, len(experts)):
            mixed_BW = torch.addcmul(mixed_BW, gate_BE[:, e : e + 1], experts[e])
        return mixed_BW


class GatedLinearUnit(nn.Module):
    """GLU: `(W_a x + b_a) ⊙ sigmoid(W_b x + b_b)` (MKT, arXiv 2402.19101, section 3.3).

    With `state_dim`, the gate is dynamic: the sigmoid also sees the receiver's own vector,
    `sigmoid(W_b (x ‖ state) + b_b)`. The paper has the static gate only.

    `bias` is added to the first `b_b`: above 0 a gate begins open, below 0 closed (an extension).
    """

    def __init__(self, in_dim: int, out_dim: int, *, state_dim: int = 0, bias: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Linear(in_dim, out_dim)
        self.gate = nn.Linear(in_dim + state_dim, out_dim)
        with torch.no_grad():
            self.gate.bias.add_(bias)
        self.dynamic = state_dim > 0

    @torch.no_grad()
    def begin_with_nothing(self) -> None:
        """Let nothing pass at first: the value is 0, and learns from there."""
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @torch.no_grad()
    def begin_with_everything(self) -> None:
        """Let `x` pass as it is at first: twice the identity, through a gate that stands half open."""
        nn.init.eye_(self.value.weight).mul_(2.0)
        for zero in (self.value.bias, self.gate.weight, self.gate.bias):
            nn.init.zeros_(zero)

    def openness(self, x: Tensor, state: Tensor) -> Tensor:
        """How far the gate stands open, `[B, out_dim]` in (0, 1)."""
        return torch.sigmoid(self.gate(torch.cat([x, state], dim=1) if self.dynamic else x))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Knowledge `[B, in_dim]` and the receiver's vector `[B, state_dim]` to what passes, `[B, out_dim]`."""
        value: Tensor = self.value(x)
        return value * self.openness(x, state)
