"""Is one model better than another: paired bootstrap over users, spread over seeds, Holm's correction, verdicts.

Users and seeds are few, and a bootstrap of few is too sure of itself: both parts are widened as Student's t is.

Shape legend: R rows, U users, S seeds, N resamples, G distinct scores of positive rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeVar

import numpy as np

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.row_quantities import (
    Array,
    auc_by_user,
    count_faults,
    log_losses,
    refuse_faults,
)

Metric = Literal["auc", "gauc", "logloss"]
Verdict = Literal["better", "worse", "can't tell", "too few users"]
Name = TypeVar("Name")
Statistic = Callable[[Array], Array]
"""A metric of fixed predictions as a function of how often each user was drawn, [U, N] -> [N]; NaN where undefined."""

FEWEST, MOST = 4, 32
"""Resamples that are looked at together."""
CHUNK_SCORES = 1 << 18
"""As many of them as have so many scores of positive rows together, so that what they sum stays in the cache."""
DRAWN = 1 << 22
"""Users of all resamples that are drawn at a time."""
MIN_USERS = 10
"""Users (`users_that_count`) from which on there are verdicts; of equal models 2 to 6.6 % get one, where 5 % may."""


@dataclass(frozen=True)
class Comparison:
    """Model a against model b on the same rows."""

    delta: float
    """Metric of a minus metric of b; of several seeds, the mean."""
    low: float
    """Lower end of the 95 % percentile interval of `delta`."""
    high: float
    """Its upper end."""
    p: float
    """Two-sided bootstrap p-value of "no difference"."""
    users: int
    """Users on whom this rests (`users_that_count`)."""


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
    """Compare two models on the same rows by resampling users.

    Rows of one user are not independent of each other. Each resample draws as many users as there are, with
    replacement, and both models are scored on their rows, which weigh what they weigh times how often the user was
    drawn. See `compare` for the interval, the p-value, and what several seeds do to both.

    Args:
        score_a: scores of model a, [R], or of its seeds, [S, R].
        score_b: scores of model b for the same rows, and as many seeds.
        label: 0 or 1, [R].
        user: integers, [R].
        weight: row weights, not negative, [R]; default: ones.
        metric: what is compared; log loss truncates scores to probabilities, the others do not.
        samples: number of resamples.
        seed: of `numpy.random.default_rng`; resample i is its i-th draw of `integers(U, size=U)`.

    Raises:
        UserError: a score is not finite, a label not binary, a weight negative, `samples` below 1, the metric is
            undefined on the whole data (one class only), or the models have unequal numbers of seeds.
    """
    scores = {"paired bootstrap, score_a": score_a, "paired bootstrap, score_b": score_b}
    found = resample(scores, label, user, weight, metrics=(metric,), samples=samples, seed=seed)
    of_a, of_b = found.values()
    return compare(of_a, of_b, seed)


@dataclass(frozen=True)
class Resampled:
    """A metric of one model: of each of its seeds, on all rows and on every resample of users."""

    value_S: Array
    drawn_SN: Array
    """NaN where a resample leaves the metric undefined (no positive drawn)."""
    users: int
    """Users on whom the metric rests (`users_that_count`)."""


def users_that_count(metric: Metric, label: Array, user: Array, weight: Array | None = None) -> int:
    """Users on whom a metric rests; it is undefined where there are none.

    AUC: those with positives or those with negatives, whichever are fewer; GAUC: those with both; log loss: all.
    Rows of weight 0 do not count. Labels, users and weights as in `paired_bootstrap`.
    """
    kept = np.ones(len(label), dtype=bool) if weight is None else weight > 0
    with_positives, with_negatives = (np.unique(user[kept & (label == kind)]) for kind in (1, 0))
    if metric == "auc":
        return min(len(with_positives), len(with_negatives))
    joined = np.intersect1d if metric == "gauc" else np.union1d
    return len(joined(with_positives, with_negatives))


def resample(
    scores: Mapping[Name, Array],
    label: Array,
    user: Array,
    weight: Array | None = None,
    *,
    metrics: Sequence[Metric] = ("auc",),
    samples: int = 1000,
    seed: int = 0,
) -> dict[tuple[Name, Metric], Resampled]:
    """Metrics of any number of models on the same resamples of users: `scores` holds [R] or [S, R] of each.

    The other arguments and errors are those of `paired_bootstrap`; numbers of seeds may differ.
    """
    if samples < 1:
        raise UserError(f"samples is {samples}; a bootstrap needs at least 1, 1000 is usual")
    if not len(label):
        raise UserError(f"{metrics[0]} is undefined on 0 rows: it needs positives and negatives; give more rows")
    weight = np.ones(len(label)) if weight is None else weight.astype(np.float64)
    users, user_R = np.unique(user, return_inverse=True)
    for name, given in scores.items():
        for score_R in np.atleast_2d(given):
            refuse_faults(str(name), count_faults(score_R, label, weight))
    # What takes long here, sorting, products of sparse matrices and running sums, does without Python's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        wanted = [
            ((name, metric), score_R)
            for name, given in scores.items()
            for metric in metrics
            for score_R in np.atleast_2d(given)
        ]
        statistics: dict[tuple[Name, Metric], list[Statistic]] = {}
        built = threads.map(lambda each: _STATISTICS[each[0][1]](each[1], label, user_R, weight), wanted)
        for (key, _), statistic in zip(wanted, built, strict=True):
            statistics.setdefault(key, []).append(statistic)
        users_of = {metric: users_that_count(metric, label, user_R, weight) for metric in metrics}
        everyone_U1, found = np.ones((len(users), 1)), {}
        for (name, metric), of_seeds in statistics.items():
            value_S = np.concatenate([statistic(everyone_U1) for statistic in of_seeds])
            if np.isnan(value_S).any():
                raise UserError(
                    f"{metric} is undefined on {len(label)} rows: it needs positives and negatives; give more rows"
                )
            found[name, metric] = Resampled(value_S, np.empty((len(of_seeds), samples)), users_of[metric])
        generator = np.random.default_rng(seed)
        positives = max(int(np.count_nonzero(label == 1)), 1)
        chunk = max(min(CHUNK_SCORES // positives, DRAWN // len(users), MOST), FEWEST)
        at_once = max(DRAWN // len(users) // chunk, 1) * chunk
        every = [
            (found[key].drawn_SN[place], each)
            for key, of_seeds in statistics.items()
            for place, each in enumerate(of_seeds)
        ]
        for first in range(0, samples, at_once):
            last = min(first + at_once, samples)
            draws = [_draw_users(generator, len(users), min(chunk, last - at)) for at in range(first, last, chunk)]
            values = threads.map(_values, [statistic for _, statistic in every], repeat(draws))
            for (drawn_N, _), value_N in zip(every, values, strict=True):
                drawn_N[first:last] = value_N
    return found


def _values(statistic: Statistic, draws: Sequence[Array]) -> Array:
    return np.concatenate([statistic(times_drawn_UN) for times_drawn_UN in draws])


def compare(a: Resampled, b: Resampled, seed: int = 0) -> Comparison:
    """Model a against model b by the resamples that both have: the difference of their means over seeds.

    Resampling U users alone is too sure where they are few: it draws from a distribution that is as much too narrow as
    the U users happen to be alike, and by sqrt((U - 1) / U). So every resample's distance from the difference on all
    rows is multiplied by sqrt(U / chi2), with chi2 drawn anew from the chi-square distribution with U - 1 degrees of
    freedom: for a mean over users this makes Student's t of what was a normal distribution, and for many users it
    changes nothing. Of one user there is no interval (NaN).

    With S > 1 seeds, every resample of users also draws what other seeds could have given: the mean over seeds plus
    Student's t with S - 1 degrees of freedom times the standard error of that mean. (Seeds are too few to be resampled:
    of 3 seeds that differ by chance alone, all are on the same side of 0 one time in four, and so would be every
    resample.) Resamples that leave the metric undefined are passed over. The p-value is twice the smaller share of
    resamples on either side of 0, each side counting one resample more than was seen, so that it is never 0. It is 1
    where all resamples are equal: what has no spread at all says nothing about other users.

    Raises:
        UserError: the models have unequal numbers of seeds.
    """
    if len(a.value_S) != len(b.value_S):
        raise UserError(f"{len(a.value_S)} seeds against {len(b.value_S)}: give both models the same seeds")
    delta, users = float(np.mean(a.value_S - b.value_S)), min(a.users, b.users)
    if users < 2:
        return Comparison(delta, math.nan, math.nan, 1.0, users)
    delta_SN = a.drawn_SN - b.drawn_SN
    seeds, samples = delta_SN.shape
    generator = np.random.default_rng([seed, seeds])
    delta_N = delta + (delta_SN.mean(axis=0) - delta) * np.sqrt(users / generator.chisquare(users - 1, samples))
    if seeds > 1:
        delta_N = delta_N + generator.standard_t(seeds - 1, samples) * delta_SN.std(axis=0, ddof=1) / math.sqrt(seeds)
    delta_N = delta_N[~np.isnan(delta_N)]
    low, high = np.quantile(delta_N, (0.025, 0.975)) if len(delta_N) else (math.nan, math.nan)
    rarer_side = int(min(np.count_nonzero(delta_N <= 0), np.count_nonzero(delta_N >= 0)))
    p = 1.0 if math.isclose(low, high) else min(1.0, 2 * (1 + rarer_side) / (1 + len(delta_N)))
    return Comparison(delta, float(low), float(high), p, users)


def spreads_needed(seeds: int, comparisons: int, level: float = 0.05) -> float:
    """How large a difference must be at least for a verdict, in standard deviations over seeds.

    By Student's t with `seeds` - 1 degrees of freedom and the first step of Holm's correction for so many comparisons,
    if users add no doubt. 3 seeds: 2.5 for one comparison, 10.9 for 18.

    Args:
        seeds: 2 or more.
        comparisons: 1 or more.
        level: of significance.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 - takes long to import, and training does not need it

    return float(stdtrit(seeds - 1, 1 - level / comparisons / 2)) / math.sqrt(seeds)


def _draw_users(generator: np.random.Generator, num_users: int, samples: int) -> Array:
    """How often each user is drawn in each resample, [U, N]."""
    drawn_NU = generator.integers(num_users, size=(samples, num_users)) + num_users * np.arange(samples)[:, None]
    times_drawn_NU: Array = np.bincount(drawn_NU.ravel(), minlength=samples * num_users).reshape(samples, num_users)
    times_drawn_UN: Array = times_drawn_NU.T.astype(np.float64, order="C")
    return times_drawn_UN


def _auc(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    """Positives are summed by user and by distinct score, negatives by the first of these that is above them."""
    positive, negative = label == 1, label == 0
    value_G, group = np.unique(score[positive], return_inverse=True)
    first_above, tied = (np.searchsorted(value_G, score[negative], side=side) for side in ("right", "left"))
    shape = (len(value_G), int(user.max()) + 1)

    from scipy.sparse import csr_array  # noqa: PLC0415 - as above

    def summed(group: Array, own: Array) -> csr_array:
        return csr_array((weight[own], (group, user[own])), shape=shape)

    rows = np.flatnonzero(negative)
    inside = first_above < len(value_G)
    positive_GU, below_GU = summed(group, positive), summed(first_above[inside], rows[inside])
    ties = tied < first_above
    group_T, at = np.unique(tied[ties], return_inverse=True)
    tied_TU = summed(at, rows[ties])[: len(group_T)]
    positive_U, negative_U = (np.bincount(user, weight * own) for own in (positive, negative))

    def statistic(times_drawn_UN: Array) -> Array:
        positive_GN = positive_GU @ times_drawn_UN
        below_GN = below_GU @ times_drawn_UN
        np.cumsum(below_GN, axis=0, out=below_GN)
        ordered_N = np.einsum("gn,gn->n", positive_GN, below_GN)
        if len(group_T):
            ordered_N += np.einsum("gn,gn->n", positive_GN[group_T], tied_TU @ times_drawn_UN) / 2
        return _ratio(ordered_N, (positive_U @ times_drawn_UN) * (negative_U @ times_drawn_UN))

    return statistic


def _gauc(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    order = np.argsort(score)
    _, auc_U, weight_U = auc_by_user(score[order], label[order], user[order], weight[order])
    weight_U = np.where(np.isnan(auc_U), 0, weight_U)
    return _mean_over_users(np.nan_to_num(auc_U) * weight_U, weight_U)


def _logloss(score: Array, label: Array, user: Array, weight: Array) -> Statistic:
    return _mean_over_users(np.bincount(user, weight * log_losses(score, label)), np.bincount(user, weight))


def _mean_over_users(sum_U: Array, weight_U: Array) -> Statistic:
    return lambda times_drawn_UN: _ratio(sum_U @ times_drawn_UN, weight_U @ times_drawn_UN)


def _ratio(above_N: Array, below_N: Array) -> Array:
    ratio_N: Array = np.divide(above_N, below_N, out=np.full(len(below_N), np.nan), where=below_N > 0)
    return ratio_N


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


def verdict(delta: float, p: float, users: int, *, metric: Metric = "auc", level: float = 0.05) -> Verdict:
    """The verdict on a model whose metric differs by `delta` from the other's.

    Args:
        delta: metric of the model minus metric of the other.
        p: its p-value; adjusted (`holm`) where several comparisons are read together.
        users: on whom both rest; below `MIN_USERS` nothing is claimed.
        metric: log loss is better when lower, the others when higher.
        level: p-values from here on are not significant.
    """
    if users < MIN_USERS:
        return "too few users"
    if not p < level or delta == 0:
        return "can't tell"
    return "better" if (delta < 0) == (metric == "logloss") else "worse"
