"""IPN, the interest prediction network of EXIT (arXiv 2407.20121): a tower per domain on the same embeddings.

Shape legend: B rows, W width of their vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.mlp import MLP


class InterestPredictionNetwork(nn.Module):
    """`P_d = sigmoid(f_d(x))` for every domain d: does the user act on the item there."""

    def __init__(self, in_dim: int, domains: Sequence[str], widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = ModuleMap(
            {
                domain: nn.Sequential(MLP(in_dim, widths, dropout=dropout), nn.Linear(widths[-1], 1))
                for domain in domains
            }
        )

    def forward(self, rows_BW: Tensor, domain: str) -> Tensor:
        """Logits of the interest in one domain, `[B]`."""
        logit_B1: Tensor = self.towers[domain](rows_BW)
        return logit_B1.squeeze(1).float()
