"""Blocks that several models are built from: the vectors of a row, and aligned specific features.

Shape legend: B rows of the batch, B_d rows of domain d, N specific features, D embedding width, W width of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_xd.embeddings import Layout, Lookups
from torchrec_xd.feature import Group
from torchrec_xd.modules.attention import SequencePooling
from torchrec_xd.modules.hfa import HeterogeneousFeatureAlignment
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.modules.rows import by_domain, concat
from torchrec_xd.settings import Settings

Widths = tuple[PositiveInt, ...]
"""Widths of the layers of a network, from the input on."""


class NetSettings(Settings):
    """The settings that most models have."""

    sequence_pooling: Literal["attention", "mean"] = "attention"
    """How a behaviour sequence becomes one vector: target attention (DIN) or the mean."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability after each hidden layer."""


class RowVectors(nn.Module):
    """The vectors that rows of all domains have: `user`, `sequence` and `shared`, those that the schema has.

    Context and scene belong to the user's moment: they are part of `user`, with `scene=False` without the scene.
    """

    def __init__(self, dims: Layout, pooling: Literal["attention", "mean"], *, scene: bool = True) -> None:
        super().__init__()
        self.pooling = SequencePooling(dims.sequences, pooling)
        self.moment: tuple[Group, ...] = ("user", "context", "scene") if scene else ("user", "context")
        user = sum(dims.groups[group] for group in self.moment)
        every = {"user": user, "sequence": self.pooling.out_dim, "shared": dims.groups["shared"]}
        self.dims = {name: dim for name, dim in every.items() if dim}
        self.out_dim = sum(self.dims.values())

    def forward(self, lookups: Lookups) -> dict[str, Tensor]:
        """Name to `[B, dims[name]]`."""
        user = concat(lookups.groups[group] for group in self.moment)
        every = {"user": user, "sequence": self.pooling(lookups.sequences), "shared": lookups.groups["shared"]}
        return {name: every[name] for name in self.dims}


def side_by_side(vectors: Mapping[str, Tensor], lookups: Lookups) -> Tensor:
    """The vectors of rows, `[B, W]`; W is 0 where all features of the schema are specific."""
    return concat(vectors.values() or [lookups.groups["user"]])


def with_specific(rows: Tensor, lookups: Lookups, domain: str) -> Tensor:
    """Vectors of one domain's rows, with its specific features behind them: `[B_d, W] -> [B_d, W + N * D]`."""
    return torch.cat([rows, lookups.specific[domain].flatten(1)], dim=1)


class SpecificAlignment(ModuleMap):
    """Every domain's specific features at one width: HFA, or with `scores=False` its last linear layer alone.

    A domain without specific features, or one that is not among `domains`, reads as zero. With `shared`, HFA crosses
    specific features with shared ones too.
    """

    def __init__(
        self, dims: Layout, aligned_dim: int, domains: Iterable[str], *, scores: bool = False, shared: bool = False
    ) -> None:
        shared_dim = dims.groups["shared"] if shared else 0
        super().__init__(
            {
                domain: HeterogeneousFeatureAlignment(
                    *dims.specific[domain], aligned_dim, scores=scores, shared_dim=shared_dim
                )
                for domain in domains
                if dims.specific[domain][0]
            }
        )
        self.out_dim = aligned_dim
        self.shared = shared

    def forward(self, lookups: Lookups) -> Tensor:
        """All rows, `[B, aligned_dim]`."""
        shared = by_domain(lookups.groups["shared"], lookups.rows) if self.shared else {}
        every = lookups.specific.items()
        return torch.cat([self._align(domain, specific, shared.get(domain)) for domain, specific in every])

    def _align(self, domain: str, specific_BND: Tensor, shared_BS: Tensor | None) -> Tensor:
        if domain not in self.names or not specific_BND.shape[1]:
            return specific_BND.new_zeros(specific_BND.shape[0], self.out_dim)
        inputs = (specific_BND,) if shared_BS is None else (specific_BND, shared_BS)
        return self[domain](*inputs)  # type: ignore[no-any-return]
