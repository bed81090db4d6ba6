"""How much of one vector another one tells, by a linear map: from sums over rows, whatever their number.

Shape legend: B rows of a batch, W width of a vector, V of both, one behind the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_PER_UNIT = 10
"""Fewer rows than this many times the width of the first vector would fit by chance."""


class Explained:
    """The share of a vector's variance that a linear map of another vector has, corrected for the map's size."""

    def __init__(self) -> None:
        self.rows, self.width = 0, 0
        self.sum_V = torch.zeros(0, dtype=torch.float64)
        self.product_VV = torch.zeros(0, 0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, given_BW: Tensor, explained_BW: Tensor) -> None:
        """Add rows."""
        both_BV = torch.cat([given_BW, explained_BW], dim=1).double().cpu()
        if not self.rows:
            self.width = given_BW.shape[1]
            self.sum_V = torch.zeros(both_BV.shape[1], dtype=torch.float64)
            self.product_VV = torch.zeros(both_BV.shape[1], both_BV.shape[1], dtype=torch.float64)
        self.rows += len(both_BV)
        self.sum_V += both_BV.sum(0)
        self.product_VV += both_BV.T @ both_BV

    def share(self) -> float | None:
        """Adjusted R², all units together; None with too few rows, or where there is no variance."""
        if self.rows < ROWS_PER_UNIT * max(self.width, 1):
            return None
        covariance_VV = self.product_VV - self.sum_V[:, None] * self.sum_V / self.rows
        given, explained = slice(0, self.width), slice(self.width, None)
        total = float(covariance_VV[explained, explained].trace())
        if total <= 1e-9 * float(self.product_VV[explained, explained].trace()):
            return None
        inverse_WW = torch.linalg.pinv(covariance_VV[given, given], hermitian=True, rtol=1e-9)
        across_WW = covariance_VV[given, explained]
        found = float((across_WW * (inverse_WW @ across_WW)).sum()) / total
        return 1 - (1 - found) * (self.rows - 1) / (self.rows - self.width - 1)
