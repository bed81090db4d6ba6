"""The time that no plan can beat: a certificate for the search's answer.

For a limit z on the slowest rank, only candidates whose largest shard takes at most z can be used. The tables' cheapest
such mix, memory of all ranks taken together, must fit into world size x z; the smallest z for which it does is a bound.
The mix is a linear programme: its duals are the prices of memory that guide the search. The bound is then raised where
tables too large for any other way must be split over all ranks and leave less room there, and where shards larger than
half of the room must each have a rank of their own (a dual feasible function of bin packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from torchrec_xd.planner.search.candidates import Floats, Ints, RankState, TableGroup

SMALL_PARTS = (0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.45, 0.5)
"""Shares of z below which the bin-packing bound ignores shards; any value is valid, these are tried."""
BISECTIONS = 24


@dataclass(frozen=True)
class Relaxation:
    """The best mix under a limit: a lower bound on the average load, and each group's cheapest candidate."""

    average_ms: float
    memory_price_M: Floats
    """ms per byte: what memory is worth at the optimum."""


class Candidates:
    """All candidates in flat arrays: N candidates, G groups of consecutive ones."""

    def __init__(self, groups: Sequence[TableGroup], ranks: RankState) -> None:
        every = [candidate for group in groups for candidate in group.candidates]
        self.world_size = len(ranks.load_W)
        self.start_G: Ints = np.cumsum([0, *(len(group.candidates) for group in groups)])[:-1]
        self.group_N: Ints = np.repeat(np.arange(len(groups)), [len(group.candidates) for group in groups])
        self.total_N: Floats = np.array([c.total_ms for c in every])
        self.memory_MN: Floats = np.array([c.memory_M for c in every]).T
        shard_fits = np.array([(c.memory_MS <= ranks.limit_M[:, None]).all() for c in every])
        self.largest_N: Floats = np.where(shard_fits, [c.largest_ms for c in every], np.inf)
        """Infinite where one shard alone exceeds a rank's memory."""
        self.capacity_M: Floats = ranks.limit_M * self.world_size
        uniform = [float(c.ms_S.min()) if c.layout == "uniform" else np.nan for c in every]
        self.uniform_N: Floats = np.array(uniform)
        """What every rank does at least under a candidate that takes all ranks; nan for others."""
        # Bin-packing weights need single shards: runs of equal shards keep the arrays small.
        runs = [(n, ms, count) for n, c in enumerate(every) for ms, count in _runs(c.ms_S)]
        self.run_of: Ints = np.array([run[0] for run in runs])
        self.run_ms: Floats = np.array([run[1] for run in runs], dtype=np.float64)
        self.run_count: Floats = np.array([run[2] for run in runs], dtype=np.float64)

    def least(self, cost_N: Floats, limit_ms: float) -> Floats:
        """Each group's least cost among candidates whose largest shard takes at most `limit_ms`, `[G]`."""
        least: Floats = np.minimum.reduceat(np.where(self.largest_N <= limit_ms, cost_N, np.inf), self.start_G)
        return least

    def cheapest(self, price_M: Floats, limit_ms: float) -> Ints:
        """Each group's cheapest candidate, memory at `price_M` ms per byte, `[G]`; -1 where none is allowed."""
        cost = np.where(self.largest_N <= limit_ms, self.total_N + price_M @ self.memory_MN, np.inf)
        order = np.lexsort((cost, self.group_N))
        first = order[self.start_G]
        return np.where(np.isfinite(cost[first]), first, -1)

    def relax(self, limit_ms: float) -> Relaxation | None:
        """The cheapest fractional mix whose shards all take at most `limit_ms`; None where memory cannot hold any."""
        free = np.zeros(2)
        chosen = self.cheapest(free, limit_ms)
        if (chosen < 0).any():
            return None
        if (self.memory_MN[:, chosen].sum(axis=1) <= self.capacity_M).all():
            return Relaxation(float(self.total_N[chosen].sum()) / self.world_size, free)
        return self._solve(np.flatnonzero(self.largest_N <= limit_ms))

    def _solve(self, allowed: Ints) -> Relaxation | None:
        # Shares of capacity and of the mean time, so that the solver sees numbers near one.
        scale = max(float(self.total_N[allowed].mean()), 1e-30)
        used = [m for m in range(2) if self.memory_MN[m, allowed].any()]
        capacity = np.maximum(self.capacity_M[used], 1.0)
        group = self.group_N[allowed]
        one_each = csr_matrix((np.ones(len(allowed)), (group, np.arange(len(allowed)))))
        for method in ("highs", "highs-ipm"):
            # On the brink of infeasibility the simplex method may end undecided; the interior point method is sure.
            solved = linprog(
                self.total_N[allowed] / scale,
                A_ub=self.memory_MN[used][:, allowed] / capacity[:, None],
                b_ub=self.capacity_M[used] / capacity,
                A_eq=one_each,
                b_eq=np.ones(len(self.start_G)),
                method=method,
            )
            if solved.status == 2:
                return None
            if solved.status == 0:
                break
        assert solved.status == 0, solved.message
        price = np.zeros(2)
        price[used] = -solved.ineqlin.marginals * scale / capacity
        # A dual value is a bound whatever the solver's tolerance did.
        least = self.least(self.total_N + price @ self.memory_MN, float(self.largest_N[allowed].max()))
        dual = float(least.sum() - price @ self.capacity_M)
        return Relaxation(dual / self.world_size, price)

    def least_shortage(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Bytes (HBM, DDR) that all ranks together lack at the least, and which groups fit no rank at all, `[G]`.

        Groups that fit no rank are counted with candidates that exceed it.
        """
        fits = np.isfinite(self.largest_N)
        oversized = ~np.logical_or.reduceat(fits, self.start_G)
        allowed = np.flatnonzero(fits | oversized[self.group_N])
        unit = float(max(self.capacity_M.max(), 1.0))
        solved = linprog(
            np.concatenate([np.zeros(len(allowed)), np.ones(2)]),
            A_ub=np.hstack([self.memory_MN[:, allowed] / unit, -np.eye(2)]),
            b_ub=self.capacity_M / unit,
            A_eq=csr_matrix(
                (np.ones(len(allowed)), (self.group_N[allowed], np.arange(len(allowed)))),
                shape=(len(self.start_G), len(allowed) + 2),
            ),
            b_eq=np.ones(len(self.start_G)),
            method="highs",
        )
        assert solved.status == 0, solved.message
        short: Floats = solved.x[-2:] * unit
        # The dual counts bytes where the solver rounds: exact as a rule, where only one kind of memory is short.
        price = np.round(-solved.ineqlin.marginals, 9)
        least = np.minimum.reduceat(
            np.where(fits | oversized[self.group_N], price @ self.memory_MN, np.inf), self.start_G
        )
        exact = float(least.sum() - price @ self.capacity_M)
        return np.where(short == short.max(), exact, 0.0) if short.min() < 1 else short, oversized


def _runs(ms_S: Floats) -> list[tuple[float, int]]:
    first = float(ms_S[0])
    if (ms_S == first).all():
        return [(first, len(ms_S))]
    return [(float(ms), int(count)) for ms, count in zip(*np.unique(ms_S, return_counts=True), strict=True)]


def lower_bound(candidates: Candidates) -> tuple[float, Relaxation] | None:
    """The parametric bound and the relaxation that shows it; None where memory holds no plan."""
    steps = np.unique(candidates.largest_N[np.isfinite(candidates.largest_N)])
    low, high = 0, len(steps) - 1
    if high < 0 or candidates.relax(float(steps[-1])) is None:
        return None
    best: tuple[int, Relaxation] | None = None
    while low <= high:
        middle = (low + high) // 2
        relaxation = candidates.relax(float(steps[middle]))
        following = steps[middle + 1] if middle + 1 < len(steps) else np.inf
        if relaxation is not None and relaxation.average_ms < following:
            best, high = (middle, relaxation), middle - 1
        else:
            low = middle + 1
    assert best is not None
    step, relaxation = best
    return max(float(steps[step]), relaxation.average_ms), relaxation


def raised_bound(candidates: Candidates, low_ms: float, high_ms: float, relaxation: Relaxation) -> float:
    """The largest limit between a bound and a plan's time that bisection proves too small."""
    for _ in range(BISECTIONS):
        middle = (low_ms + high_ms) / 2
        if _too_small(candidates, middle, relaxation.memory_price_M):
            low_ms = middle
        else:
            high_ms = middle
    return low_ms


def _too_small(candidates: Candidates, limit_ms: float, price_M: Floats) -> bool:
    """Whether no plan's slowest rank can end within the limit.

    Groups whose shards are too large for every other way must take all ranks; what they do there leaves the others
    less room, which may force more groups to do so.
    """
    size, uniform = candidates.largest_N, candidates.uniform_N
    # A hair's breadth of slack, so that rounding never proves too much.
    slack = 1e-9 * limit_ms
    everywhere_ms, forced = 0.0, np.zeros(len(candidates.start_G), dtype=bool)
    while True:
        room = limit_ms - everywhere_ms + slack
        single = np.isnan(uniform) & (size <= room)
        now_forced = forced | ~np.logical_or.reduceat(single, candidates.start_G)
        on_all = np.where(~np.isnan(uniform) & (size <= limit_ms), uniform, np.inf)
        least = np.minimum.reduceat(on_all, candidates.start_G)[now_forced]
        everywhere_ms = float(least.sum())
        if everywhere_ms > limit_ms:
            return True
        if (now_forced == forced).all():
            break
        forced = now_forced
    allowed = single | (~np.isnan(uniform) & (size <= limit_ms))
    cost = np.where(allowed, candidates.total_N + price_M @ candidates.memory_MN, np.inf)
    work = float(np.minimum.reduceat(cost, candidates.start_G).sum() - price_M @ candidates.capacity_M)
    if work > candidates.world_size * (limit_ms + slack):
        return True
    ranks = candidates.world_size * (1 + 1e-9)
    return any(_ranks_needed(candidates, room, allowed, forced, small) > ranks for small in SMALL_PARTS)


def _ranks_needed(
    candidates: Candidates, room_ms: float, allowed: npt.NDArray[np.bool_], forced: npt.NDArray[np.bool_], small: float
) -> float:
    """Shards above 1 - `small` of a rank's room count a whole rank, those below `small` nothing."""
    share = candidates.run_ms / room_ms
    weight = np.where(share > 1 - small, 1.0, np.where(share < small, 0.0, share)) * candidates.run_count
    per_candidate = np.zeros(len(candidates.total_N))
    np.add.at(per_candidate, candidates.run_of, weight)
    least = np.minimum.reduceat(np.where(allowed, per_candidate, np.inf), candidates.start_G)
    return float(least[~forced].sum())
