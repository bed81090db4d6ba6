"""An interval for the difference of two arms of an A/B test that may be looked at every day.

Robbins' normal mixture (H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math.
Stat. 41, 1970; as asymptotic confidence sequence: I. Waudby-Smith et al., "Time-uniform central limit theory and
asymptotic confidence sequences", Ann. Stat. 52, 2024, arXiv 2103.06476).

The units are users, who come back: what a user is like stays in all of the user's days, so days are not independent,
and more days of the same users do not bring the error to 0. The difference of two arms' click rates, over all days so
far, has a variance V_t that is clustered by user. Such estimates have independent increments in the information
I_t = 1 / V_t (D. Scharfstein, A. Tsiatis, J. Robins, "Semiparametric efficiency and its implication on the design and
analysis of group-sequential studies", JASA 92, 1997): I_t (difference - truth) is a Brownian motion at time I_t, and

    half width = sqrt((I_t + lambda) log((I_t + lambda) / (lambda alpha^2))) / I_t

holds for all t together with probability 1 - alpha. It is asymptotic in the number of users.

Shape legend: U users of an arm, T days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchrec_xd.evaluation.row_quantities import Array


@dataclass(frozen=True)
class Interval:
    """Of the difference of two click rates, over all days so far."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the arms differ."""
        return self.low > 0 or self.high < 0


def mixture_half_width(variance: float, scale: float, alpha: float = 0.05) -> float:
    """Half the width of the confidence sequence where an estimate has this variance.

    Args:
        variance: of the estimate now, V_t.
        scale: lambda, in units of information, fixed before the data are looked at; the sequence is tightest where the
            information is some eight times as large.
        alpha: chance that the truth is ever left out.
    """
    information = 1 / variance
    return math.sqrt((information + scale) * math.log((information + scale) / (scale * alpha**2))) / information


def click_rate(clicks_U: Array, shown_U: Array) -> tuple[float, float]:
    """Clicks per impression of an arm, and the variance of this estimate, clustered by user (linearised ratio).

    NaN where nothing was shown; the variance also where fewer than two users were shown anything.
    """
    seen = shown_U > 0
    users, total = int(seen.sum()), float(shown_U.sum())
    if not total:
        return math.nan, math.nan
    rate = float(clicks_U.sum()) / total
    if users < 2:
        return rate, math.nan
    residual_U = clicks_U[seen] - rate * shown_U[seen]
    return rate, float((residual_U**2).sum()) * users / (users - 1) / total**2


def difference(rate_a: tuple[float, float], rate_b: tuple[float, float]) -> tuple[float, float]:
    """Of two arms with users of their own: rate of a less rate of b, and the variance of that."""
    return rate_a[0] - rate_b[0], rate_a[1] + rate_b[1]


def sequence(differences: list[tuple[float, float]], alpha: float = 0.05) -> list[Interval | None]:
    """A confidence sequence: intervals that hold for all days together.

    lambda is the information of the first day that has any.

    Args:
        differences: for each day, the difference over all days so far and its variance.
        alpha: chance that any of the intervals leaves out the truth.

    Returns:
        An interval for each day; None where the variance is unknown or 0.
    """
    known = [bool(np.isfinite(variance)) and variance > 0 for _, variance in differences]
    scale = next((1 / variance for (_, variance), is_known in zip(differences, known, strict=True) if is_known), 1.0)
    found: list[Interval | None] = []
    for (delta, variance), is_known in zip(differences, known, strict=True):
        half = mixture_half_width(variance, scale, alpha) if is_known else math.nan
        found.append(Interval(delta, delta - half, delta + half) if is_known else None)
    return found
