"""Vectors of numbers, such as text or image embeddings, at the width of the embeddings.

Shape legend: B rows, L numbers of a vector, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class VectorProjection(nn.Module):
    """`e = W x`: one matrix `[D, L]` per feature, kept by the column's name like a dense number's line.

    Without a bias, so that a vector of zeros (a null) stays zero with no mask in the batch; the layer that reads the
    result has a bias of its own. The first W keeps the length of x in the mean, as a number's first line does.

    Args:
        sizes: column to (L, D).
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.columns = tuple(sizes)
        self.weights = nn.ParameterDict(
            {f"v_{column}": nn.Parameter(torch.empty(dim, length)) for column, (length, dim) in sizes.items()}
        )
        for weight in self.weights.values():
            nn.init.normal_(weight, std=weight.shape[0] ** -0.5)

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Column to `[B, L]`, also of columns that are not projected here, to column to `[B, D]`."""
        return {column: functional.linear(vectors[column], self.weights[f"v_{column}"]) for column in self.columns}
