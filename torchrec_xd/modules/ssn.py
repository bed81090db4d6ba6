"""SSN, the scene selector network of EXIT (arXiv 2407.20121): how much of a source interest a row's scene lets pass.

Shape legend: B rows, W width of their vectors, S width of their scene, K sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_xd.modules.mlp import MLP


class SceneSelectorNetwork(nn.Module):
    """`P_tr^k = sigmoid(MLP(user ‖ item ‖ context ‖ scene))`, a transfer probability per source and row."""

    def __init__(self, in_dim: int, num_sources: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = MLP(in_dim, widths, dropout=dropout)
        self.out = nn.Linear(self.hidden.out_dim, num_sources)

    def forward(self, rows_BW: Tensor, scene_BS: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        logit_BK: Tensor = self.out(self.hidden(torch.cat([rows_BW, scene_BS], dim=1)))
        return logit_BK.float()


class ConstantSelector(nn.Module):
    """The ablation "w/o SSN": one learned transfer probability per source, the same for all rows."""

    def __init__(self, num_sources: int) -> None:
        super().__init__()
        self.logit_K = nn.Parameter(torch.zeros(num_sources))

    def forward(self, rows_BW: Tensor, scene_BS: Tensor) -> Tensor:
        """Called like SceneSelectorNetwork; rows and scenes are not looked at."""
        return self.logit_K.float().expand(rows_BW.shape[0], -1)
