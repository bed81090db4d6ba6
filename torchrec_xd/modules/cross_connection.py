"""CoNet's layer: every tower receives the other towers' activations (Hu et al. 2018, the cross connection unit).

Shape legend: B rows, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchrec_xd.modules.mapping import ModuleMap


class CrossConnection(nn.Module):
    """`a_d' = ReLU(W_d a_d + b_d + sum over s != d of H_{s,d} a_s)`: one layer of every domain's tower.

    The paper has two domains and one H for both directions; here every ordered pair of domains has a matrix of its own.
    """

    def __init__(self, in_dim: int, out_dim: int, domains: Sequence[str]) -> None:
        super().__init__()
        self.own = ModuleMap({domain: nn.Linear(in_dim, out_dim) for domain in domains})
        self.transfer = ModuleMap(
            {
                domain: ModuleMap({s: nn.Linear(in_dim, out_dim, bias=False) for s in domains if s != domain})
                for domain in domains
            }
        )

    def forward(self, states: Mapping[str, Tensor], domain: str) -> Tensor:
        """The same rows in every tower, `[B, I]` each, to the next layer of one domain's tower, `[B, O]`."""
        sources = self.transfer[domain]
        assert isinstance(sources, ModuleMap)
        heard = [sources[source](states[source]) for source in sources.names]
        return torch.relu(torch.stack([self.own[domain](states[domain]), *heard]).sum(0))
