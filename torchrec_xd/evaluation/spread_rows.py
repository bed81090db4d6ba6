"""Exact metrics of rows that are spread over ranks: routed by user, sorted in parts.

Shape legend: R rows of one task on this rank, K extra columns, S distinct scores on this rank, U users, W ranks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np

from torchrec_xd.evaluation.collectives import Collectives
from torchrec_xd.evaluation.row_quantities import Array, ascending, auc_by_user, log_losses, run_starts

T = TypeVar("T")
ResultDict = dict[str, float | int | None]
PART_ROWS = 1 << 22
"""Rows that are sorted at a time."""
SAMPLES_PER_RANK = 1024
"""Scores from which each rank's distribution is guessed when scores are cut into one range per rank: the loads then
differ from each other by some W / 1024."""


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
class Rows:
    """Rows of one task, [R] each and [R, K]."""

    score: Array
    label: Array
    weight: Array
    user: Array
    extra: Array

    def columns(self) -> tuple[Array, ...]:
        """All of them, in this order."""
        return self.score, self.label, self.weight, self.user, self.extra

    def take(self, index: Array) -> Rows:
        """Some rows, by place or by mask."""
        return Rows(*(column[index] for column in self.columns()))


def route_by_user(rows: Rows, ranks: Collectives) -> Rows:
    """All rows of a user on one rank; ids are scrambled first, as they may share a divisor with the number of ranks."""
    return Rows(*ranks.exchange(rows.columns(), _place_of(rows.user, ranks.size, 32).astype(np.int64)))


def _place_of(user_R: Array, places: int, shift: int) -> Array:
    """One of some places for every user, by its scrambled bits above `shift`, uint16."""
    scrambled_R = user_R.astype(np.uint64)
    scrambled_R *= np.uint64(0x9E3779B97F4A7C15)
    scrambled_R >>= np.uint64(shift)
    scrambled_R %= np.uint64(places)
    return scrambled_R.astype(np.uint16)


def result_of(rows: Rows, ranks: Collectives) -> Result:
    """Metrics of the rows of all ranks; no user has rows on two of them."""
    parts = -(-len(rows.score) // PART_ROWS) or 1
    sums = _added(_in_parts(_user_sums, rows, _place_of(rows.user, parts, 40), parts))
    ordered, positive, negative = _ordered_pairs(rows, ranks, parts)
    sums |= {"ordered": ordered, "positive": positive, "negative": negative}
    by_rank = dict(zip(sums, ranks.gather(np.array(list(sums.values()))).T, strict=True))
    negative_below_W = _earlier(by_rank["negative"])
    ordered_between = float(by_rank["positive"] @ negative_below_W)
    total = {name: float(values_W.sum()) for name, values_W in by_rank.items()}
    weight = total["positive"] + total["negative"]
    logloss = _ratio(total["loss"], weight)
    return Result(
        auc=_ratio(total["ordered"] + ordered_between, total["positive"] * total["negative"]),
        gauc=_ratio(total["user_auc"], total["user_weight"]),
        logloss=logloss,
        ne=_ratio(logloss, _entropy(_ratio(total["positive"], weight))),
        calibration=_ratio(total["predicted"], total["positive"]),
        rows=int(total["rows"]),
        positives=int(total["positives"]),
        gauc_users=int(total["users"]),
        gauc_users_excluded=int(total["users_excluded"]),
    )


def _in_parts(work: Callable[[Rows], T], rows: Rows, part_R: Array, parts: int) -> list[T]:
    """What is found of each part of the rows; some at a time, so that little is held in memory."""
    rows = replace(rows, extra=rows.extra[:, :0])
    if parts == 1:
        return [work(rows)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # sorting does without Python's lock
        return list(threads.map(lambda part: work(rows.take(np.flatnonzero(part_R == part))), range(parts)))


def _user_sums(rows: Rows) -> dict[str, float]:
    """Sums over the rows and users of a part, which has all rows of its users."""
    rows = rows.take(ascending(rows.score))
    weight_R, prob_R = rows.weight.astype(np.float64), np.clip(rows.score, 0, 1).astype(np.float64)
    _, auc_U, weight_U = auc_by_user(rows.score, rows.label, rows.user, rows.weight)
    kept_U = ~np.isnan(auc_U)
    return {
        "rows": len(weight_R),
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


def _ordered_pairs(rows: Rows, ranks: Collectives, parts: int) -> tuple[float, float, float]:
    """Each rank gets one range of the scores, ranges ascending by rank.

    Equal scores are added up before they travel: ties, however heavy, burden no rank.

    Returns:
        Weight of this range's (positive, negative) pairs in the right order, ties half; of its positives; negatives.
    """
    part_R = np.searchsorted(_cuts(rows.score, parts), rows.score, side="right").astype(np.uint16)
    if ranks.size == 1:
        return _joined(_in_parts(lambda part: _pairs(*_distinct(part)[1:]), rows, part_R, parts))
    found = _in_parts(_distinct, rows, part_R, parts)
    score, positive, negative = (np.concatenate(columns) for columns in zip(*found, strict=True))
    destination = np.searchsorted(_splitters(score, ranks), score, side="right")
    (arrived,) = ranks.exchange([np.stack([score, positive, negative], axis=1)], destination)
    return _pairs(*_sum_ties(*arrived[np.argsort(arrived[:, 0])].T)[1:])


def _cuts(score_R: Array, parts: int) -> Array:
    """Scores that cut rows into parts of about equal size."""
    if parts == 1:
        return score_R[:0]
    sample = score_R[np.linspace(0, len(score_R) - 1, SAMPLES_PER_RANK).astype(np.int64)]
    return np.quantile(sample, np.arange(1, parts) / parts).astype(score_R.dtype)


def _distinct(rows: Rows) -> tuple[Array, ...]:
    """Distinct scores, ascending, with the weights of their positives and negatives."""
    order = ascending(rows.score)
    weight_R = rows.weight[order].astype(np.float64)
    positive_R = weight_R * rows.label[order]
    return _sum_ties(rows.score[order], positive_R, weight_R - positive_R)


def _pairs(positive: Array, negative: Array) -> tuple[float, float, float]:
    """Of distinct scores, ascending: pairs in the right order, positives and negatives."""
    return float(positive @ (_earlier(negative) + negative / 2)), float(positive.sum()), float(negative.sum())


def _joined(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The same of several ranges of scores, ascending."""
    ordered, positive, negative = np.array(parts).T
    return float(ordered.sum() + positive @ _earlier(negative)), float(positive.sum()), float(negative.sum())


def _earlier(values: Array) -> Array:
    """Sum of all values before each; never a difference of sums, which would lose small values next to large ones."""
    return np.append(0.0, np.cumsum(values))[:-1]


def _sum_ties(score: Array, *columns: Array) -> tuple[Array, ...]:
    """Distinct scores, and the sums of the columns over each; scores ascend."""
    start = run_starts(score)
    return score[start], *(np.add.reduceat(column, start) for column in columns)


def _splitters(score_S: Array, ranks: Collectives) -> Array:
    """W - 1 scores that cut the distinct scores of all ranks into ranges of about equal size; `score_S` ascends."""
    num = SAMPLES_PER_RANK
    places = np.linspace(0, len(score_S) - 1, num).astype(np.int64)
    sample = score_S[places].astype(np.float64) if len(score_S) else np.zeros(num)
    gathered = ranks.gather(np.append(sample, len(score_S)))
    samples, stand_for = gathered[:, :num].ravel(), np.repeat(gathered[:, num], num)
    order = np.argsort(samples)
    filled = np.cumsum(stand_for[order])
    at = np.searchsorted(filled, filled[-1] * np.arange(1, ranks.size) / ranks.size)
    return np.asarray(samples[order][at])


def _entropy(rate: float) -> float:
    """Log loss of always predicting the base rate; 0 for a rate of 0 or 1, NaN for an unknown one."""
    if rate in (0, 1):
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by."""
    return numerator / denominator if denominator > 0 else math.nan
