"""Dense numbers as embedding vectors.

Shape legend: B rows, N dense features, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NumericEmbedding(nn.Module):
    """`e_n = x_n w_n + b_n`: every dense feature becomes a vector, so that gates and HFA treat it like any other.

    One pair `(w_n, b_n)` of width D per feature (AutoInt, Song et al. 2019, section 4.3, with a bias), kept by the
    column's name, so that a model of fewer domains can take over just the features that it has.
    """

    def __init__(self, columns: Sequence[str], dim: int) -> None:
        super().__init__()
        self.columns = list(columns)
        self.names = [f"n_{column}" for column in columns]
        self.lines = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, dim)) for name in self.names})
        for line in self.lines.values():
            nn.init.normal_(line[0], std=dim**-0.5)

    def line(self, column: str) -> Tensor:
        """`(w_n, b_n)` of a column, `[2, D]`."""
        line: Tensor = self.lines[f"n_{column}"]
        return line

    def forward(self, dense_BN: Tensor) -> Tensor:
        """`[B, N] -> [B, N, D]`."""
        weight_ND, bias_ND = torch.stack([self.lines[name] for name in self.names], dim=1)
        embedded_BND: Tensor = dense_BN.unsqueeze(2) * weight_ND + bias_ND
        return embedded_BND
