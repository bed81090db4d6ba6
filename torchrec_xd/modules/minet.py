"""MiNet's two levels of attention (Ouyang et al. 2020, section 2): over the items of a history, and over interests.

Shape legend: B rows, L positions, D embedding width, Q candidate width, U user width, H hidden width, W any width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchrec_xd.modules.attention import attend
from torchrec_xd.modules.mapping import ModuleMap


class ItemAttention(nn.Module):
    """`sum_i softmax(hᵀ ReLU(W [r_i ‖ q ‖ p ‖ r_i ⊙ q']))_i r_i`: a short-term interest, given candidate and user.

    In the target domain, `q'` is the candidate's own vector in the history's table. A source domain's items live in
    another space, so a transfer matrix M brings them to the candidate's: `M r_i ⊙ q` stands in the last place.
    """

    def __init__(self, dim: int, candidate_dim: int, user_dim: int, hidden: int, *, transfer: bool) -> None:
        super().__init__()
        self.transfer = nn.Linear(dim, candidate_dim, bias=False) if transfer else None
        # W, taken apart: what concerns the row alone is computed once a row, not once a position.
        self.of_row = nn.Linear(candidate_dim + user_dim, hidden)
        self.of_item = nn.Linear(dim, hidden, bias=False)
        self.of_product = nn.Linear(candidate_dim if transfer else dim, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, sequence: tuple[Tensor, Tensor, Tensor], candidate_BQ: Tensor, user_BU: Tensor) -> Tensor:
        """History as (items `[B, L, D]`, lengths `[B]`, the candidate's own vector `[B, D]`), to `[B, D]`."""
        items_BLD, length_B, own_BD = sequence
        if self.transfer is None:
            product = items_BLD * own_BD.unsqueeze(1)
        else:
            product = self.transfer(items_BLD) * candidate_BQ.unsqueeze(1)
        row_BH = self.of_row(torch.cat([candidate_BQ, user_BU], dim=1))
        hidden_BLH = torch.relu(row_BH.unsqueeze(1) + self.of_item(items_BLD) + self.of_product(product))
        return attend(self.score(hidden_BLH).squeeze(2), items_BLD, length_B)


class InterestAttention(nn.Module):
    """`v_k = exp(g_kᵀ ReLU(V_k [q ‖ all interests]) + b_k)`: how much each interest counts for this candidate.

    Weights are not normalised: several interests may count for much, or none.
    """

    def __init__(self, dims: Mapping[str, int], candidate_dim: int, hidden: int) -> None:
        super().__init__()
        in_dim = candidate_dim + sum(dims.values())
        self.weigh = ModuleMap(
            {
                name: nn.Sequential(nn.Linear(in_dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 1))
                for name in dims
            }
        )

    def weights(self, interests: Mapping[str, Tensor], candidate_BQ: Tensor) -> dict[str, Tensor]:
        """Interest to its weight, `[B, 1]`, positive."""
        together = torch.cat([candidate_BQ, *interests.values()], dim=1)
        return {name: self.weigh[name](together).exp() for name in interests}

    def forward(self, interests: Mapping[str, Tensor], candidate_BQ: Tensor) -> Tensor:
        """Name to interest `[B, W]` to `q ‖ v_1 interest_1 ‖ ...`."""
        weights = self.weights(interests, candidate_BQ)
        return torch.cat([candidate_BQ, *(weights[name] * interest for name, interest in interests.items())], dim=1)
