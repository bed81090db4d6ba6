"""Is one model better than another: paired bootstrap over users, spread over seeds, Holm's correction, verdicts.

The per-row and per-user quantities that the bootstrap resamples live here too; `metrics.py` builds on them.

Shape legend: R rows, U users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.settings import UserError

Metric = Literal["auc", "gauc", "logloss"]
Verdict = Literal["better", "worse", "can't tell"]
Array = NDArray[Any]

PROBABILITY_FLOOR = 2.0**-23
"""Log loss keeps probabilities this far from 0 and 1: the spacing of float32 at 1, in which models predict."""

RULES = (
    "a score is NaN or infinite; the model diverged: lower the learning rate, or look for NaN among the inputs",
    "a label is neither 0 nor 1; binary metrics know no others: mend the label column",
    "a row weight is negative, NaN or infinite; weights are inverse sampling rates: mend the weight column",
)


def count_faults(score_R: Array, label_R: Array, weight_R: Array) -> Array:
    """How many rows break each of the RULES, int64 [len(RULES)]."""
    good = (
        np.isfinite(score_R),
        (label_R == 0) | (label_R == 1),
        np.isfinite(weight_R) & (weight_R >= 0),
    )
    return np.array([len(rows) - np.count_nonzero(rows) for rows in good])


def refuse_faults(name: str, faults: Array) -> None:
    """Stop if rows break one of the RULES.

    Raises:
        UserError: names the data (`name`), the number of rows, and the rule.
    """
    for count, rule in zip(faults.tolist(), RULES, strict=True):
        if count:
            raise UserError(f"{name}: in {count} rows {rule}")


def log_losses(score_R: Array, label_R: Array) -> Array:
    """Cross entropy of every row, in nats, float64 [R]; scores are truncated to probabilities first."""
    prob_R = np.clip(score_R.astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -np.log(np.where(label_R == 1, prob_R, 1 - prob_R))


def run_starts(*keys: Array) -> Array:
    """Index of the first row of each run of rows with equal keys."""
    new_R = np.zeros(len(keys[0]), dtype=bool)
    new_R[:1] = True
    for key_R in keys:
        new_R[1:] |= key_R[1:] != key_R[:-1]
    return np.flatnonzero(new_R)


def auc_by_user(score_R: Array, label_R: Array, user_R: Array, weight_R: Array) -> tuple[Array, Array, Array]:
    """AUC within every user: the weighted share of (positive, negative) pairs in the right order, ties half.

    Args:
        score_R: any real scores, **ascending**.
        label_R: 0 or 1.
        user_R: integers.
        weight_R: not negative; a pair weighs the product of its rows.

    Returns:
        User ids [U], ascending; AUC [U], NaN for users without both classes; summed row weights [U].
    """
    order = np.argsort(user_R, kind="stable")
    user_R, score_R = user_R[order], score_R[order]
    positive_R = (label_R * weight_R)[order].astype(np.float64)
    negative_R = weight_R[order] - positive_R
    tie = run_starts(user_R, score_R)
    first_U = run_starts(user_R[tie])
    positive, negative = np.add.reduceat(positive_R, tie), np.add.reduceat(negative_R, tie)
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[first_U], np.diff(first_U, append=len(tie)))
    pairs_U = np.add.reduceat(positive, first_U) * np.add.reduceat(negative, first_U)
    ordered_U = np.add.reduceat(positive * (below + negative / 2), first_U)
    auc_U = np.divide(ordered_U, pairs_U, out=np.full(len(first_U), np.nan), where=pairs_U > 0)
    return user_R[tie][first_U], auc_U, np.add.reduceat(positive + negative, first_U)


@dataclass(frozen=True)
class Comparison:
    """Model a against model b on the same rows."""

    delta: float
    """Metric of a minus metric of b."""
    low: float
    """Lower end of the 95 % percentile interval of `delta`."""
    high: float
    """Its upper end."""
    p: float
    """Two-sided bootstrap p-value of "no difference"."""


def paired_bootstrap(
    score_a: Array,
    score_b: Array,
    label: Array,
    user: Array,
    weight: Array | None = None,
    *,
    metric: Metric = "auc",
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows by resampling users: rows of one user are not independent of each other.

    Each resample draws as many users as there are, with replacement, and both models are scored on their rows, which
    weigh what they weigh times how often the user was drawn. Resamples that leave the metric undefined (no positive
    drawn) are passed over. The p-value is twice the smaller share of resamples on either side of 0, each side counting
    one resample more than was seen, so that it is never 0.

    Args:
        score_a: scores of model a, [R].
        score_b: scores of model b for the same rows, [R].
        label: 0 or 1, [R].
        user: integers, [R].
        weight: row weights, not negative, [R]; ones unless given.
        metric: what is compared; log loss truncates scores to probabilities, the others do not.
        samples: number of resamples.
        seed: of `numpy.random.default_rng`; resample i is its i-th draw of `integers(U, size=U)`.

    Raises:
        UserError: a score is not finite, a label not binary, a weight negative, `samples` below 1, or the metric is
            undefined on the whole data (one class only).
    """
    if samples < 1:
        raise UserError(f"samples is {samples}; a bootstrap needs at least 1, 1000 is usual")
    weight = np.ones(len(label)) if weight is None else weight.astype(np.float64)
    for name, score in (("score_a", score_a), ("score_b", score_b)):
        refuse_faults(f"paired bootstrap, {name}", count_faults(score, label, weight))
    users, user_index = np.unique(user, return_inverse=True)
    of_a, of_b = (_STATISTICS[metric](score, label, user_index, weight) for score in (score_a, score_b))
    everyone = np.ones(len(users))
    delta = of_a(everyone) - of_b(everyone)
    if math.isnan(delta):
        raise UserError(f"{metric} is undefined on {len(label)} rows: it needs positives and negatives; give more rows")
    generator = np.random.default_rng(seed)
    deltas = np.empty(samples)
    for sample in range(samples):
        times_drawn = np.bincount(generator.integers(len(users), size=len(users)), minlength=len(users))
        deltas[sample] = of_a(times_drawn) - of_b(times_drawn)
    deltas = deltas[~np.isnan(deltas)]
    low, high = np.quantile(deltas, (0.025, 0.975)) if len(deltas) else (math.nan, math.nan)
    rarer_side = int(min(np.count_nonzero(deltas <= 0), np.count_nonzero(deltas >= 0)))
    return Comparison(delta, float(low), float(high), min(1.0, 2 * (1 + rarer_side) / (1 + len(deltas))))


Statistic = Callable[[Array], float]
"""A metric of fixed predictions as a function of how often each user was drawn, [U]; NaN where it is undefined."""


def _auc(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    order = np.argsort(score)
    positive, negative = order[label[order] == 1], order[label[order] == 0]
    below = np.searchsorted(score[negative], score[positive], side="left")
    not_above = np.searchsorted(score[negative], score[positive], side="right")
    user_positive, user_negative = user[positive], user[negative]
    weight_positive, weight_negative = weight[positive], weight[negative]

    def statistic(times_drawn: Array) -> float:
        drawn_positive = times_drawn[user_positive] * weight_positive
        negatives_before = np.zeros(len(negative) + 1)
        np.cumsum(times_drawn[user_negative] * weight_negative, out=negatives_before[1:])
        twice_ordered = np.dot(drawn_positive, negatives_before[below] + negatives_before[not_above])
        pairs = drawn_positive.sum() * negatives_before[-1]
        return float(twice_ordered / (2 * pairs)) if pairs > 0 else math.nan

    return statistic


def _gauc(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    order = np.argsort(score)
    _, auc_U, weight_U = auc_by_user(score[order], label[order], user[order], weight[order])
    weight_U = np.where(np.isnan(auc_U), 0, weight_U)
    return _mean_over_users(np.nan_to_num(auc_U) * weight_U, weight_U)


def _logloss(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    return _mean_over_users(np.bincount(user, weight * log_losses(score, label)), np.bincount(user, weight))


def _mean_over_users(sum_U: Array, weight_U: Array) -> Statistic:
    def statistic(times_drawn: Array) -> float:
        total = np.dot(times_drawn, weight_U)
        return float(np.dot(times_drawn, sum_U) / total) if total > 0 else math.nan

    return statistic


_STATISTICS: dict[Metric, Callable[[Array, Array, Array, Array], Statistic]] = {
    "auc": _auc,
    "gauc": _gauc,
    "logloss": _logloss,
}


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of one metric over seeds; the deviation of one value is NaN.

    Raises:
        UserError: no values.
    """
    if not values:
        raise UserError("mean and spread of no values: give the metric of at least one seed")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-Bonferroni adjusted p-values, in the order given; reject those below the level to bound the family's error.

    The k-th smallest of m is multiplied by m - k + 1, made monotone, and capped at 1.
    """
    order = np.argsort(p_values, kind="stable")
    factor = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factor))
    return [float(p) for p in adjusted]


def verdict(delta: float, p: float, *, metric: Metric = "auc", level: float = 0.05) -> Verdict:
    """What may be said of a model whose metric differs by `delta` from the other's.

    Args:
        delta: metric of the model minus metric of the other.
        p: its p-value; adjusted (`holm`) where several comparisons are read together.
        metric: log loss is better when lower, the others when higher.
        level: p-values from here on say nothing.
    """
    if not p < level or delta == 0:
        return "can't tell"
    return "better" if (delta < 0) == (metric == "logloss") else "worse"
