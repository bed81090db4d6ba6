"""Finds which candidate every group takes and where its shards go, so that the slowest rank is as fast as possible.

1. The lower bound's relaxation gives memory its price; several starts place each group's cheapest candidate under a
   limit on its largest shard, longest first.
2. The best starts are improved: groups of the slowest rank are moved, recut or swapped; when nothing helps, a few ranks
   are emptied and refilled.

Counts, not clocks, end the search: every process finds the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.search.candidates import Candidate, Floats, Ints, RankState, TableGroup
from torchrec_xd.planner.search.local_search import Assignment, Improvement
from torchrec_xd.planner.search.lower_bound import Candidates, Relaxation, lower_bound, raised_bound

LIMITS = (1.0, 1.01, 1.03, 1.06, 1.12, 1.25, 1.5, 2.0, 4.0)
"""Limits on the slowest rank, in lower bounds, that starts aim at."""
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Largest shard allowed, in limits: small parts pack well, large ones may cost less in all."""
STARTS_KEPT = 3
FEW_GROUPS = 32
RETRIES = 6
"""Attempts at a start while none has succeeded yet."""


@dataclass(frozen=True)
class Aim:
    """What a start tries: a candidate for each group, a limit on the slowest rank, a price of memory in ms per byte."""

    chosen: list[int]
    limit_ms: float
    price_M: Floats


@dataclass(frozen=True)
class PlacedGroup:
    """A candidate of a group and the ranks of its shards, in order."""

    candidate: Candidate
    ranks: Ints


@dataclass(frozen=True)
class Found:
    """The search's answer."""

    placed: tuple[PlacedGroup, ...]
    """One per group, in order."""
    slowest_ms: float
    lower_bound_ms: float


@dataclass(frozen=True)
class NotFound:
    """Why there is no plan."""

    shortage_M: Floats
    """Bytes (HBM, DDR) that all ranks together lack at the least; 0 where memory as such suffices."""
    oversized: tuple[int, ...]
    """Groups of which no candidate's shard fits an empty rank."""
    unplaced: tuple[int, ...]
    """Groups that the best attempt could not place."""


def search(groups: Sequence[TableGroup], cluster: Cluster, effort: int = 400) -> Found | NotFound:
    """The best plan found; a start is given up after `effort` vain attempts in a row to improve it.

    Few groups get more attempts each: they cost little, and every choice weighs much.
    """
    effort *= max(1, FEW_GROUPS // max(len(groups), 1))
    ranks = RankState(cluster)
    flat = Candidates(groups, ranks)
    bound = lower_bound(flat)
    if bound is None:
        shortage, oversized = flat.least_shortage()
        return NotFound(shortage, tuple(np.flatnonzero(oversized).tolist()), ())
    lower_ms, relaxation = bound
    starts, unplaced = _starts(groups, flat, cluster, lower_ms, relaxation)
    if not starts:
        shortage, _ = flat.least_shortage()
        return NotFound(shortage, (), tuple(unplaced))
    improved = [Improvement(groups, cluster, start, lower_ms).run(effort) for start in starts[:STARTS_KEPT]]
    best = min(improved, key=lambda assignment: assignment.slowest_ms)
    certified_ms = raised_bound(flat, lower_ms, best.slowest_ms, relaxation)
    placed = tuple(
        PlacedGroup(group.candidates[index], ranks)
        for group, index, ranks in zip(groups, best.chosen, best.ranks, strict=True)
    )
    return Found(placed, best.slowest_ms, certified_ms)


def _starts(
    groups: Sequence[TableGroup], flat: Candidates, cluster: Cluster, lower_ms: float, relaxation: Relaxation
) -> tuple[list[Assignment], list[int]]:
    """Starts from fast to slow, and the groups that the best failure could not place."""
    starts: dict[float, Assignment] = {}
    fewest: list[int] = list(range(len(groups)))
    seen: set[bytes] = set()
    for limit in LIMITS:
        for share in SHARES:
            for price in _memory_prices(flat, relaxation):
                chosen = _choice(flat, price, lower_ms * limit * share, lower_ms * limit)
                if chosen.tobytes() in seen:
                    continue
                seen.add(chosen.tobytes())
                aim = Aim((chosen - flat.start_G).tolist(), lower_ms * limit, price)
                start, left = _place_with_retries(groups, cluster, aim, RETRIES if not starts else 1)
                if start is not None:
                    starts.setdefault(start.slowest_ms, start)
                elif len(left) < len(fewest):
                    fewest = left
    return [starts[ms] for ms in sorted(starts)], fewest


def _memory_prices(flat: Candidates, relaxation: Relaxation) -> list[Floats]:
    """Prices of memory to try: none or the relaxation's, then higher ones for when memory is tight."""
    price = relaxation.memory_price_M
    if price.any():
        return [price, price * 1.5, price * 4, price * 100]
    per_byte = flat.total_N.mean() / np.maximum(flat.memory_MN.mean(axis=1), 1.0)
    return [price, per_byte * np.array([1.0, 0.0]), per_byte * np.array([100.0, 100.0])]


def _choice(flat: Candidates, price_M: Floats, share_ms: float, limit_ms: float) -> Ints:
    """Each group's cheapest candidate with small parts; where it has none, under the limit, or its smallest parts."""
    chosen = flat.cheapest(price_M, share_ms)
    for wider in (limit_ms, float(np.max(flat.largest_N, where=np.isfinite(flat.largest_N), initial=0.0))):
        chosen = np.where(chosen < 0, flat.cheapest(price_M, wider), chosen)
    return chosen


def _place_with_retries(
    groups: Sequence[TableGroup], cluster: Cluster, aim: Aim, retries: int
) -> tuple[Assignment | None, list[int]]:
    """Longest first, then largest first; what finds no place goes first the next time."""
    fewest: list[int] = list(range(len(groups)))
    for by_memory in (False, True):
        first: set[int] = set()
        for _ in range(retries):
            start, left = _place(groups, cluster, aim, by_memory, first)
            if start is not None:
                return start, []
            fewest = min(fewest, left, key=len)
            first.update(left)
    return None, fewest


def _place(
    groups: Sequence[TableGroup], cluster: Cluster, aim: Aim, by_memory: bool, first: set[int]
) -> tuple[Assignment | None, list[int]]:
    """A candidate that no longer fits gives way to the cheapest that ends within the limit, or else ends soonest."""
    ranks = RankState(cluster)
    picked = [group.candidates[index] for group, index in zip(groups, aim.chosen, strict=True)]
    limit = np.maximum(ranks.limit_M, 1.0)
    size = [float((c.memory_MS.max(axis=1) / limit).max()) if by_memory else c.largest_ms for c in picked]
    order = sorted(range(len(groups)), key=lambda i: (i not in first, picked[i].layout != "uniform", -size[i], i))
    assignment = Assignment(ranks, list(aim.chosen), [np.empty(0, dtype=np.int64) for _ in groups])
    left = []
    for i in order:
        index, spot = aim.chosen[i], ranks.best(picked[i])
        if spot is None:
            others = [(n, c, s) for n, c in enumerate(groups[i].candidates) if (s := ranks.best(c)) is not None]
            if not others:
                left.append(i)
                continue
            index, _, spot = min(
                others,
                key=lambda other: (max(other[2][1], aim.limit_ms), other[1].total_ms + aim.price_M @ other[1].memory_M),
            )
        assignment.put(i, groups[i].candidates[index], index, spot[0])
    return (None if left else assignment), left
