"""STAR's layers: linear maps in star topology, partitioned normalisation (Sheng et al. 2021, sections 3.3 and 3.4).

Shape legend: B rows of one domain, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_xd.modules.mapping import ModuleMap


class StarLinear(nn.Module):
    """A domain's weights are `W_p* = W_p ⊙ W`, its biases `b_p* = b_p + b`: own and shared ones.

    Own weights begin as ones and own biases as zeros, so that all domains begin as the shared layer.
    """

    def __init__(self, in_dim: int, out_dim: int, domains: Sequence[str]) -> None:
        super().__init__()
        self.shared = nn.Linear(in_dim, out_dim)
        own = {domain: nn.Linear(in_dim, out_dim) for domain in domains}
        for layer in own.values():
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.own = ModuleMap(own)

    def forward(self, x_BI: Tensor, domain: str) -> Tensor:
        """Rows of one domain, `[B, I] -> [B, O]`."""
        own = self.own[domain]
        assert isinstance(own, nn.Linear)
        return functional.linear(x_BI, self.shared.weight * own.weight, self.shared.bias + own.bias)


class StarMLP(nn.Module):
    """Layers in star topology, with ReLU (and dropout) after each; a `head` ends in a plain one, as an `MLP` does."""

    def __init__(
        self, in_dim: int, widths: Sequence[int], domains: Sequence[str], *, head: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(StarLinear(i, o, domains) for i, o in pairwise((in_dim, *widths)))
        self.dropout = nn.Dropout(dropout)
        self.plain = len(self.layers) - 1 if head else len(self.layers)

    def forward(self, x_BI: Tensor, domain: str) -> Tensor:
        """Rows of one domain, `[B, in_dim] -> [B, widths[-1]]`."""
        for i, layer in enumerate(self.layers):
            x_BI = layer(x_BI, domain)
            if i < self.plain:
                x_BI = self.dropout(torch.relu(x_BI))
        return x_BI


class DomainNorm(nn.Module):
    """One domain's part of PartitionedNorm: its scale and shift, and the running statistics of its rows."""

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))


class PartitionedNorm(nn.Module):
    """`(γ γ_p) (z - μ_p) / sqrt(σ_p² + ε) + (β + β_p)`: batch normalisation by domain.

    In training, μ_p and σ_p² are those of the domain's rows in the batch, and move its running statistics; in
    evaluation they are the running ones. So are they in training where a batch has fewer than two rows of the domain:
    no spread can be measured on them, and nothing moves.
    """

    def __init__(self, dim: int, domains: Sequence[str], momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.own = ModuleMap({domain: DomainNorm(dim) for domain in domains})
        self.momentum, self.eps = momentum, eps

    def forward(self, z_BI: Tensor, domain: str) -> Tensor:
        """Rows of one domain, `[B, I] -> [B, I]`."""
        own = self.own[domain]
        assert isinstance(own, DomainNorm)
        z_BI, mean, variance = z_BI.float(), own.mean, own.variance
        if self.training and z_BI.shape[0] > 1:
            mean, variance = z_BI.mean(0), z_BI.var(0, unbiased=False)
            with torch.no_grad():
                own.mean.lerp_(mean, self.momentum)
                own.variance.lerp_(z_BI.var(0), self.momentum)
        normalised = (z_BI - mean) / torch.sqrt(variance + self.eps)
        return normalised * (self.scale * own.scale) + (self.shift + own.shift)
