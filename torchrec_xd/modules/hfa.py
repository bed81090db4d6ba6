"""HFA: heterogeneous feature alignment (MKT, arXiv 2402.19101, section 3.2.2).

Shape legend: B rows, N specific features of the domain, D embedding width, S width of the shared features, A aligned
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeterogeneousFeatureAlignment(nn.Module):
    """HFA: one domain's specific features, weighed one by one and brought to a width that all domains share.

    With `x_0 = v_spec` flattened to `[B, N*D]`:

    - explicit cross, two layers as the paper prints them: `x_{l+1} = x_l (x_0ᵀ w_l) + b_l + x_0`. This is DCN's cross
      layer with the roles of `x_0` and `x_l` swapped (DCN: `x_0 (x_lᵀ w_l) + b_l + x_l`); the printed form is kept.
    - implicit cross: `v_im = ReLU(W x_0 + b)`
    - importance: `p = 2 sigmoid(FC(x_2 ‖ v_im))` in (0, 2), one score per feature
    - alignment: `ReLU(FC(flatten(p ⊙ v_spec)))`, `[B, A]`

    `scores=False` is the ablation "w/o HFA": only the last FC, no crosses, every score 1.

    The section's text speaks of crosses with shared features, which its equations lack: with `shared_dim`,
    `x_0 = v_spec ‖ v_shared`, and still one score per specific feature.
    """

    def __init__(
        self, num_features: int, dim: int, aligned_dim: int, *, scores: bool = True, shared_dim: int = 0
    ) -> None:
        super().__init__()
        flat_dim = num_features * dim
        self.scores = scores
        if scores:
            crossed = flat_dim + shared_dim
            self.cross_weight = nn.Parameter(torch.empty(2, crossed))
            self.cross_bias = nn.Parameter(torch.zeros(2, crossed))
            nn.init.normal_(self.cross_weight, std=crossed**-0.5)
            self.implicit = nn.Linear(crossed, crossed)
            self.importance = nn.Linear(2 * crossed, num_features)
        self.align = nn.Linear(flat_dim, aligned_dim)

    def importances(self, spec_BND: Tensor, shared_BS: Tensor | None = None) -> Tensor:
        """Score of every specific feature, `[B, N, D]`, with `shared_dim` also `[B, S]`, to `[B, N]` in (0, 2)."""
        x0 = spec_BND.flatten(1) if shared_BS is None else torch.cat([spec_BND.flatten(1), shared_BS], dim=1)
        x = x0
        for weight, bias in zip(self.cross_weight, self.cross_bias, strict=True):
            x = x * (x0 @ weight).unsqueeze(1) + bias + x0
        crosses = torch.cat([x, torch.relu(self.implicit(x0))], dim=1)
        return 2 * torch.sigmoid(self.importance(crosses))

    def forward(self, spec_BND: Tensor, shared_BS: Tensor | None = None) -> Tensor:
        """`[B, N, D]`, with `shared_dim` also `[B, S]`, to `[B, A]`."""
        weighed_BND = spec_BND * self.importances(spec_BND, shared_BS).unsqueeze(2) if self.scores else spec_BND
        return torch.relu(self.align(weighed_BND.flatten(1)))
