"""Exact metrics of rows that are spread over ranks: of users part by part, of all rows by ranges of scores.

Shape legend: R rows of a part, S distinct scores of a part, U users, W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from torchrec_xd.evaluation import routing
from torchrec_xd.evaluation.collectives import Collectives
from torchrec_xd.evaluation.routing import Part, Rows, joined, side_by_side
from torchrec_xd.evaluation.row_quantities import Array, ascending, auc_by_user, log_losses, run_starts

ResultDict = dict[str, float | int | None]
SAMPLES_PER_RANK = 1024
"""Scores from which a rank's distribution is guessed when scores are cut into ranges; more where all ranks together
would have fewer than 16 for each range. The loads of ranks then differ from each other by some W / 1024."""


@dataclass(frozen=True)
class Result:
    """Metrics of a set of rows; NaN where undefined.

    AUC and GAUC take scores as they are; log loss, NE and calibration truncate them to [0, 1]. Row weights count in
    all metrics, and in none of the four counts.
    """

    auc: float
    """Weighted share of (positive, negative) pairs in the right order, ties one half."""
    gauc: float
    """Mean of AUCs within users, each weighing the user's impressions (summed row weights)."""
    logloss: float
    """Mean cross entropy in nats."""
    ne: float
    """Normalized entropy: log loss over that of always predicting the base rate."""
    calibration: float
    """Sum of predictions over sum of labels."""
    rows: int
    positives: int
    gauc_users: int
    """Users with both classes; only they enter `gauc`."""
    gauc_users_excluded: int
    """Users with one class, left out of `gauc`."""

    def as_dict(self) -> ResultDict:
        """The fields as JSON knows them: None in place of NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Curve:
    """Distinct scores, ascending, and the weights of their positives and negatives, [S] each."""

    score: Array
    positive: Array
    negative: Array

    def of(self, start: int, stop: int) -> tuple[Array, ...]:
        """The columns of some scores, one after the other."""
        return self.score[start:stop], self.positive[start:stop], self.negative[start:stop]


def result_of(parts: Sequence[Part], ranks: Collectives) -> Result:
    """Metrics of the rows of all ranks (a collective); no user has rows in two parts."""
    found = list(side_by_side(_of_part, parts))
    sums = _added([sums for sums, _ in found])
    ordered, positive, negative = _ordered_pairs([curve for _, curve in found], ranks)
    total = dict(zip(sums, ranks.total(np.array(list(sums.values()))).tolist(), strict=True))
    weight = positive + negative
    logloss = _ratio(total["loss"], weight)
    return Result(
        auc=_ratio(ordered, positive * negative),
        gauc=_ratio(total["user_auc"], total["user_weight"]),
        logloss=logloss,
        ne=_ratio(logloss, _entropy(_ratio(positive, weight))),
        calibration=_ratio(total["predicted"], positive),
        rows=int(total["rows"]),
        positives=int(total["positives"]),
        gauc_users=int(total["users"]),
        gauc_users_excluded=int(total["users_excluded"]),
    )


def _of_part(part: Part) -> tuple[dict[str, float], Curve]:
    rows = joined(part)
    rows = rows.take(ascending(rows.score))
    return _user_sums(rows), _curve(rows)


def _user_sums(rows: Rows) -> dict[str, float]:
    """Sums over rows and users; scores ascend."""
    weight_R, prob_R = rows.weights().astype(np.float64), np.clip(rows.score, 0, 1).astype(np.float64)
    _, auc_U, weight_U = auc_by_user(rows.score, rows.label, rows.user, rows.weights())
    kept_U = ~np.isnan(auc_U)
    return {
        "rows": len(rows),
        "positives": np.count_nonzero(rows.label),
        "loss": weight_R @ log_losses(rows.score, rows.label),
        "predicted": weight_R @ prob_R,
        "user_auc": weight_U[kept_U] @ auc_U[kept_U],
        "user_weight": weight_U[kept_U].sum(),
        "users": np.count_nonzero(kept_U),
        "users_excluded": np.count_nonzero(~kept_U),
    }


def _added(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in sums) for name in sums[0]}


def _curve(rows: Rows) -> Curve:
    """Scores ascend."""
    weight_R = rows.weights().astype(np.float64)
    positive_R = weight_R * rows.label
    score, positive, negative = _sum_ties(rows.score, positive_R, weight_R - positive_R)
    return Curve(score, _narrowed(positive), _narrowed(negative))


def _narrowed(value: Array) -> Array:
    """The same numbers in less memory, where they fit."""
    greatest = value.max(initial=0)
    for kind, end in ((np.uint8, 256), (np.float32, np.finfo(np.float32).max)):
        if greatest < end:
            narrow: Array = value.astype(kind)
            if np.array_equal(narrow, value):
                return narrow
    return value


def _ordered_pairs(curves: Sequence[Curve], ranks: Collectives) -> tuple[float, float, float]:
    """Each rank gets its share of ranges of the scores, ascending by rank, one after the other (a collective).

    Equal scores of a part are added up before they travel: ties, however heavy, burden no rank.

    Returns:
        Of all ranks: weight of (positive, negative) pairs in the right order, ties half; of positives; of negatives.
    """
    size, itemsize = sum(len(curve.score) for curve in curves), curves[0].score.itemsize
    most, itemsize = ranks.gather(np.array([size, itemsize])).max(axis=0).tolist()
    turns = -(-most // routing.PART_ROWS) or 1
    cuts = _cuts([curve.score for curve in curves], turns * ranks.size, ranks)
    bounds = [[0, *np.searchsorted(curve.score, cuts).tolist(), len(curve.score)] for curve in curves]

    def arrived(turn: int) -> tuple[Array, ...]:
        to_ranks = [
            [curve.of(*bound[at : at + 2]) for curve, bound in zip(curves, bounds, strict=True)]
            for at in range(turn, turns * ranks.size, turns)
        ]
        score, *weights = (np.concatenate(columns) for columns in zip(*chain(*to_ranks), strict=True))
        num_sent = np.array([sum(len(score) for score, *_ in to_rank) for to_rank in to_ranks])
        weights_S2 = np.stack(weights, axis=1).astype(np.float64, copy=False)
        return ranks.exchange([score.astype(f"f{itemsize}", copy=False), weights_S2], num_sent)

    found = [_range_pairs(arrived(0))] if turns == 1 else side_by_side(_range_pairs, map(arrived, range(turns)))
    return _in_all(ranks.gather(np.array(list(found)).ravel()).reshape(-1, 3))


def _range_pairs(columns: tuple[Array, ...]) -> tuple[float, float, float]:
    """Of all scores of a range: weight of pairs in the right order, ties half; of positives; of negatives."""
    score, weights = columns
    order = ascending(score)
    _, positive, negative = _sum_ties(score[order], *weights[order].T)
    return float(positive @ (_earlier(negative) + negative / 2)), float(positive.sum()), float(negative.sum())


def _in_all(ranges: Array) -> tuple[float, float, float]:
    """The same of several ranges of scores, ascending."""
    ordered, positive, negative = ranges.T
    return float(ordered.sum() + positive @ _earlier(negative)), float(positive.sum()), float(negative.sum())


def _earlier(values: Array) -> Array:
    """Sum of all values before each; never a difference of sums, which would lose small values next to large ones."""
    return np.append(0.0, np.cumsum(values))[:-1]


def _sum_ties(score: Array, *columns: Array) -> tuple[Array, ...]:
    """Distinct scores, and the sums of the columns over each; scores ascend."""
    start = run_starts(score)
    return score[start], *(np.add.reduceat(column, start) for column in columns)


def _cuts(scores: Sequence[Array], ranges: int, ranks: Collectives) -> Array:
    """Scores that cut the distinct ones of all ranks into ranges of about equal size, ascending (a collective).

    Args:
        scores: of this rank, ascending in each part.
        ranges: their number.
        ranks: that share the scores.
    """
    if ranges == 1:
        return np.empty(0)
    num, size = max(SAMPLES_PER_RANK, -(-16 * ranges // ranks.size)), sum(map(len, scores))
    every = -(-size // num) or 1
    some = np.sort(np.concatenate([score[every // 2 :: every] for score in scores])).astype(np.float64)
    sample = some[np.linspace(0, len(some) - 1, num).astype(np.int64)] if len(some) else np.zeros(num)
    gathered = ranks.gather(np.append(sample, size))
    samples, stand_for = gathered[:, :num].ravel(), np.repeat(gathered[:, num], num)
    order = np.argsort(samples)
    filled = np.cumsum(stand_for[order])
    at = np.searchsorted(filled, filled[-1] * np.arange(1, ranges) / ranges)
    return np.asarray(samples[order][at])


def _entropy(rate: float) -> float:
    """Log loss of always predicting the base rate; 0 for a rate of 0 or 1, NaN for an unknown one."""
    if rate in (0, 1):
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by."""
    return numerator / denominator if denominator > 0 else math.nan
