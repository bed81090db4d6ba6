"""Chooses a candidate and ranks for every group, so that the slowest rank is as fast as possible.

1. Greedy starts: each group's cheapest candidate under a limit on its largest shard, longest first. The memory of a
   candidate is counted at the shadow price that the lower bound's linear program gives it.
2. Iterated local search from the best starts: groups of the slowest rank are moved, resharded or swapped; where no such
   change helps, a few ranks are emptied and filled again.
3. Memory that is left over goes to faster kernels on the ranks that are not the slowest.

Iterations are counted, not timed, so that every process finds the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.search.candidates import Candidate, Floats, Ints, RankState, TableGroup
from torchrec_xd.planner.search.local_search import Assignment, LocalSearch
from torchrec_xd.planner.search.lower_bound import Candidates, Relaxation, lower_bound, raised_bound

LIMITS = (1.0, 1.01, 1.03, 1.06, 1.12, 1.25, 1.5, 2.0, 4.0)
"""Limits on the slowest rank that starts aim at, as multiples of the lower bound."""
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Largest shard of a start, as parts of its limit: small shards pack well, large ones may cost less in total."""
STARTS_KEPT = 3
"""Starts that are improved."""
FEW_GROUPS = 32
"""Fewer groups than that get proportionally more effort."""
ENOUGH_TRIES = 10
"""Tries by chance for each way to place all groups: more of them would find nothing new."""
RETRIES = 6
"""Attempts per start as long as no start has fitted."""


@dataclass(frozen=True)
class Aim:
    """The target of a start."""

    chosen: list[int]
    """Candidate of each group."""
    limit_ms: float
    """On the slowest rank."""
    price_M: Floats
    """Shadow price of memory, ms per byte."""


@dataclass(frozen=True)
class PlacedGroup:
    """The chosen candidate of a group and the ranks of its shards, in order."""

    candidate: Candidate
    ranks: Ints


@dataclass(frozen=True)
class Found:
    """The plan that the search found."""

    placed: tuple[PlacedGroup, ...]
    """One per group, in order."""
    slowest_ms: float
    lower_bound_ms: float


@dataclass(frozen=True)
class NotFound:
    """Why there is no plan."""

    shortage_M: Floats
    """Bytes (HBM, DDR) that all ranks together lack, at least; 0 where their total memory is sufficient."""
    oversized: tuple[int, ...]
    """Groups whose every candidate has a shard that exceeds the memory of an empty rank."""
    unplaced: tuple[int, ...]
    """Groups that the best attempt could not place."""


def search(groups: Sequence[TableGroup], cluster: Cluster, effort: int = 400) -> Found | NotFound:
    """Search for the plan with the fastest slowest rank.

    Args:
        groups: what is placed.
        cluster: on its ranks.
        effort: consecutive non-improving iterations after which the search from one start ends. Small problems get
            more, as their iterations are cheap and each choice has a large effect; the smallest have few choices.
    """
    choices = math.prod(len(group.candidates) * cluster.world_size for group in groups)
    effort = min(effort * max(1, FEW_GROUPS // max(len(groups), 1)), ENOUGH_TRIES * choices)
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
    improved = [LocalSearch(groups, cluster, start, lower_ms).run(effort) for start in starts[:STARTS_KEPT]]
    best = min(improved, key=lambda assignment: assignment.slowest_ms)
    _use_free_memory(groups, best)
    certified_ms = raised_bound(flat, lower_ms, best.slowest_ms, relaxation)
    placed = tuple(
        PlacedGroup(group.candidates[index], ranks)
        for group, index, ranks in zip(groups, best.chosen, best.ranks, strict=True)
    )
    return Found(placed, best.slowest_ms, certified_ms)


def _use_free_memory(groups: Sequence[TableGroup], assignment: Assignment) -> None:
    """Change to faster kernels and larger caches in place where they fit, slowest groups first."""
    state, chosen = assignment.state, assignment.chosen
    current = [group.candidates[index] for group, index in zip(groups, chosen, strict=True)]
    for group in sorted(range(len(groups)), key=lambda i: (-current[i].total_ms, i)):
        now, ranks = current[group], assignment.ranks[group]
        faster = [
            (candidate.total_ms, index)
            for index, candidate in enumerate(groups[group].candidates)
            if candidate.total_ms < now.total_ms and candidate.shape == now.shape
        ]
        for _, index in sorted(faster):
            candidate = groups[group].candidates[index]
            more = candidate.memory_MS - now.memory_MS
            if (state.memory_MW[:, ranks] + more <= state.limit_M[:, None]).all():
                state.take(now, ranks)
                assignment.put(group, candidate, index, ranks)
                break


def _starts(
    groups: Sequence[TableGroup], flat: Candidates, cluster: Cluster, lower_ms: float, relaxation: Relaxation
) -> tuple[list[Assignment], list[int]]:
    """Starts, fastest first; and the groups that remained where the best failed start ended."""
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
    """Shadow prices of memory to try: that of the relaxation, which may be 0, then higher ones for tight memory."""
    price = relaxation.memory_price_M
    if price.any():
        return [price, price * 1.5, price * 4, price * 100]
    per_byte = flat.total_N.mean() / np.maximum(flat.memory_MN.mean(axis=1), 1.0)
    return [price, per_byte * np.array([1.0, 0.0]), per_byte * np.array([100.0, 100.0])]


def _choice(flat: Candidates, price_M: Floats, share_ms: float, limit_ms: float) -> Ints:
    """Each group's cheapest candidate with shards up to `share_ms`; else up to `limit_ms`; else of any size."""
    chosen = flat.cheapest(price_M, share_ms)
    for wider in (limit_ms, float(np.max(flat.largest_N, where=np.isfinite(flat.largest_N), initial=0.0))):
        chosen = np.where(chosen < 0, flat.cheapest(price_M, wider), chosen)
    return chosen


def _place_with_retries(
    groups: Sequence[TableGroup], cluster: Cluster, aim: Aim, retries: int
) -> tuple[Assignment | None, list[int]]:
    """Place groups by time, then by memory, largest first; groups that did not fit go first in the next attempt."""
    picked = [group.candidates[index] for group, index in zip(groups, aim.chosen, strict=True)]
    limit_M = np.maximum(RankState(cluster).limit_M, 1.0)
    times = [candidate.largest_ms for candidate in picked]
    memory = [float((candidate.memory_MS.max(axis=1) / limit_M).max()) for candidate in picked]
    fewest: list[int] = list(range(len(groups)))
    for size in (times, memory):
        first: set[int] = set()
        for _ in range(retries):
            order = sorted(
                range(len(groups)), key=lambda i: (i not in first, picked[i].layout != "uniform", -size[i], i)
            )
            start, left = _place(groups, cluster, aim, order)
            if start is not None:
                return start, []
            fewest = min(fewest, left, key=len)
            first.update(left)
    return None, fewest


def _place(
    groups: Sequence[TableGroup], cluster: Cluster, aim: Aim, order: Sequence[int]
) -> tuple[Assignment | None, list[int]]:
    """Place groups in order. Where the chosen candidate does not fit: the cheapest within the limit, else the fastest.

    Returns:
        The start, None where groups remained that did not fit; and these groups.
    """
    ranks = RankState(cluster)
    assignment = Assignment(ranks, list(aim.chosen), [np.empty(0, dtype=np.int64) for _ in groups])
    left = []
    for i in order:
        index = aim.chosen[i]
        spot = ranks.best(groups[i].candidates[index])
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
