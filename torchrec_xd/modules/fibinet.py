"""FiBiNet's two layers: squeeze-and-excitation over fields, and bilinear products of them (Huang et al. 2019).

Shape legend: B rows, F fields, D embedding width, R reduced width, P pairs of fields, F * (F - 1) / 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Kernel = Literal["all", "each", "interaction"]


class SqueezeExcitation(nn.Module):
    """SENet: every field times its own weight, computed from all fields (section 3.2).

    - squeeze: `z_f = mean over D of e_f` (eq. 1)
    - excitation: `A = ReLU(W_2 ReLU(W_1 Z))`, `W_1` to R = F / reduction (eq. 2)
    - re-weight: `v_f = A_f e_f` (eq. 3)
    """

    def __init__(self, num_fields: int, reduction: int) -> None:
        super().__init__()
        reduced = max(num_fields // reduction, 1)
        self.squeeze = nn.Linear(num_fields, reduced, bias=False)
        self.excite = nn.Linear(reduced, num_fields, bias=False)

    def weights(self, emb_BFD: Tensor) -> Tensor:
        """Weight of every field, `[B, F, D] -> [B, F]`, not negative."""
        return torch.relu(self.excite(torch.relu(self.squeeze(emb_BFD.mean(dim=2)))))

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """`[B, F, D] -> [B, F, D]`."""
        return emb_BFD * self.weights(emb_BFD).unsqueeze(2)


class BilinearInteraction(nn.Module):
    """`p_ij = (v_i W) ⊙ v_j` for every pair i < j (section 3.3).

    `W` is one for all pairs (`all`, eq. 4), the first field's (`each`, eq. 5) or the pair's own (`interaction`, eq. 6).
    """

    first_P: Tensor
    second_P: Tensor

    def __init__(self, num_fields: int, dim: int, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("first_P", first, persistent=False)
        self.register_buffer("second_P", second, persistent=False)
        # The last field is never the first of a pair: it has no matrix.
        count = {"all": 1, "each": num_fields - 1, "interaction": len(first)}[kernel]
        self.weight_KDD = nn.Parameter(torch.empty(count, dim, dim).normal_(std=dim**-0.5))

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """`[B, F, D] -> [B, P, D]`, pairs in the order (0, 1), (0, 2) ... (F - 2, F - 1)."""
        if self.kernel == "interaction":
            left_BPD = torch.einsum("bpd,pde->bpe", emb_BFD[:, self.first_P], self.weight_KDD)
        else:
            first_BFD = emb_BFD[:, :-1]
            matrices = self.weight_KDD.expand(first_BFD.shape[1], -1, -1)
            left_BPD = torch.einsum("bfd,fde->bfe", first_BFD, matrices)[:, self.first_P]
        return left_BPD * emb_BFD[:, self.second_P]
