"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """`[..., in_dim] -> [..., widths[-1]]`: linear layers with ReLU (and dropout) after each.

    A `head` ends in a plain linear layer: its output is a logit, or anything else that may be negative.
    """

    def __init__(self, in_dim: int, widths: Sequence[int], *, head: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_dim = widths[-1] if widths else in_dim
        for i, width in enumerate(widths):
            self.append(nn.Linear(in_dim, width))
            if not (head and i == len(widths) - 1):
                # one module, so that weights are called the same whatever the dropout
                self.append(nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU())
            in_dim = width

    def first(self, x: Tensor) -> Tensor:
        """What the first layer, a linear one, makes of `[..., in_dim]`."""
        first: Tensor = self[0](x)
        return first

    def rest(self, first: Tensor) -> Tensor:
        """What all other layers make of that: `rest(first(x))` is the whole."""
        for layer in list(self)[1:]:
            first = layer(first)
        return first
