"""Losses: pure functions of tensors.

Shape legend: B rows, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

STRAIGHT_FROM = 0.9
"""From where on `probability_bce_sum` is straight for negative rows, with slope 10: rarely reached by what is right,
and no steeper, as a sum of several probabilities begins training above 1 in all rows, most of them negative."""
Penalty = Literal["cosine", "squared", "absolute"]
"""What is made of the cosine of two vectors before it is minimised."""
PENALTIES: dict[Penalty, Callable[[Tensor], Tensor]] = {
    "cosine": torch.positive,
    "squared": torch.square,
    "absolute": torch.abs,
}
"""The functions themselves."""


def bce_sum(logit_B: Tensor, label_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Binary cross entropy of logits, summed over rows (a scalar, 0 for no rows): divide by the batch's rows."""
    return functional.binary_cross_entropy_with_logits(logit_B.float(), label_B, weight_B, reduction="sum")


def probability_bce_sum(prob_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """Binary cross entropy of predictions from 0 on that may exceed 1, summed over rows (a scalar).

    Cross entropy of the value, truncated to [2^-23, 1 - 2^-23]; but the term `-log(1 - value)` of a negative row goes
    on as its tangent above .9 (`STRAIGHT_FROM`). So it stays convex, its slope is at most 10 times the row's weight,
    and a negative row above 1, where a truncated value has no gradient, is still pulled down. For what is not made of
    one logit.
    """
    prob_B = prob_B.float()
    gain_B = prob_B.clamp(2.0**-23, 1 - 2.0**-23).log()
    cost_B = (prob_B - STRAIGHT_FROM).clamp(min=0) / (1 - STRAIGHT_FROM) - torch.log1p(
        -prob_B.clamp(2.0**-23, STRAIGHT_FROM)
    )
    return (weight_B * ((1 - label_B) * cost_B - label_B * gain_B)).sum()


def squared_error_sum(value_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """`sum_B weight (value - label)^2`, a scalar."""
    return (weight_B * (value_B.float() - label_B).square()).sum()


def absolute_error_sum(value_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """`sum_B weight |value - label|`, a scalar (EXIT, arXiv 2407.20121: the L1 term of the joint loss)."""
    return (weight_B * (value_B.float() - label_B).abs()).sum()


def polarized_distribution_loss(
    pairs: Mapping[str, tuple[Tensor, Tensor]], penalty: Penalty = "cosine"
) -> dict[str, Tensor]:
    """PDL, whose parts these are: `sum_d mean_B cos(g_com^d, g_ind^d)` (MKT, arXiv 2402.19101, section 3.2.4).

    Signed, without an absolute value, and minimised: common and independent knowledge are pushed apart. Where both
    end in a ReLU, as in MKT by default, the cosine lies in [0, 1], and 0 is reached by vectors that use different
    units. A domain without rows adds 0; the cosine of a zero vector is 0.

    Args:
        pairs: per domain, common and independent knowledge, `[B_d, W]` each.
        penalty: what is averaged: the cosine as the paper prints it, or as an extension its square or absolute value,
            which are least where the two are orthogonal, not opposed.
    """
    of = PENALTIES[penalty]
    return {
        domain: of(cosine(common.float(), independent.float())).sum() / max(len(common), 1)
        for domain, (common, independent) in pairs.items()
    }


def cosine(a_BW: Tensor, b_BW: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine of two vectors per row, `[B]`; no norm counts as less than `eps`.

    `functional.cosine_similarity` divides both by their norms first, which costs twice as much.
    """
    dot_B, square_a_B, square_b_B = (a_BW * b_BW).sum(1), (a_BW * a_BW).sum(1), (b_BW * b_BW).sum(1)
    return dot_B / (square_a_B.clamp(min=eps**2) * square_b_B.clamp(min=eps**2)).sqrt()
