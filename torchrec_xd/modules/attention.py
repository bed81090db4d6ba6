"""Target attention over a behaviour sequence (DIN, Zhou et al. 2018, section 4.3).

Shape legend: B rows, L positions, D embedding width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_xd.modules.mapping import ModuleMap


def attend(logit_BL: Tensor, keys_BLD: Tensor, length_B: Tensor) -> Tensor:
    """`sum_l softmax(logit)_l k_l` over each row's valid positions, `[B, D]`; zero for an empty sequence."""
    beyond_BL = torch.arange(keys_BLD.shape[1], device=length_B.device) >= length_B.unsqueeze(1)
    # A large negative number and not -inf: a row that is masked everywhere stays free of NaN, backward too.
    attention_BL = torch.softmax(logit_BL.float().masked_fill(beyond_BL, -1e9), dim=1).masked_fill(beyond_BL, 0.0)
    return (attention_BL.to(keys_BLD.dtype).unsqueeze(1) @ keys_BLD).squeeze(1)


class TargetAttention(nn.Module):
    """`sum_l a_l k_l` with `a = softmax over the sequence of MLP(q ‖ k ‖ q - k ‖ q ⊙ k)`.

    DIN leaves the softmax out; here it is kept, so that the pooled vector does not grow with the length of a history.
    An empty sequence gives the zero vector.
    """

    def __init__(self, dim: int, hidden: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * dim, hidden)
        # No bias on the score: it would move all positions alike, which the softmax does not see.
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, query_BD: Tensor, keys_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Candidate `[B, D]`, sequence `[B, L, D]` of `length_B` valid positions, to the pooled `[B, D]`."""
        # W (q ‖ k ‖ q - k ‖ q ⊙ k), taken apart: what concerns q alone is computed once a row, not once a position.
        of_q, of_k, of_difference, of_product = self.hidden.weight.chunk(4, dim=1)
        row_BH = functional.linear(query_BD, of_q + of_difference, self.hidden.bias)
        position_BLH = functional.linear(keys_BLD, of_k - of_difference)
        product_BLH = functional.linear(query_BD.unsqueeze(1) * keys_BLD, of_product)
        hidden_BLH = torch.relu(row_BH.unsqueeze(1) + position_BLH + product_BLH)
        return attend(self.score(hidden_BLH).squeeze(2), keys_BLD, length_B)


class MeanPooling(nn.Module):
    """The mean of a sequence's valid positions; zero for an empty one."""

    def forward(self, query_BD: Tensor, keys_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Called like TargetAttention; the candidate is not looked at. Padding is zero, so a sum needs no mask."""
        return keys_BLD.sum(dim=1) / length_B.clamp(min=1, max=max(keys_BLD.shape[1], 1)).unsqueeze(1)


class SequencePooling(nn.Module):
    """`v_seq`: every behaviour sequence of a row pooled to one vector, side by side."""

    def __init__(self, dims: Mapping[str, int], pooling: Literal["attention", "mean"] = "attention") -> None:
        super().__init__()
        self.poolings = ModuleMap(
            {name: TargetAttention(dim) if pooling == "attention" else MeanPooling() for name, dim in dims.items()}
        )
        self.out_dim = sum(dims.values())

    def forward(self, sequences: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor | None:
        """Name to (keys `[B, L, D]`, lengths `[B]`, candidates `[B, D]`), to `[B, out_dim]`; None without sequences."""
        pooled = [self.poolings[name](query, keys, length) for name, (keys, length, query) in sequences.items()]
        return torch.cat(pooled, dim=1) if pooled else None
