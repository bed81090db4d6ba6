"""The time that no plan can beat: a certificate for the search's answer.

For a limit z on the slowest rank, only candidates whose largest shard takes at most z can be used. The tables' cheapest
such mix, memory of all ranks taken together, must fit into world size x z; the smallest z for which it does is a bound.
The mix is a linear programme: its duals are the prices of memory that guide the search. The bound is then raised where
shards larger than half of z must each have a rank of their own (a dual feasible function of bin packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from torchrec_xd.planner.placement import Floats, Group, Ints, Ranks

SMALL_PARTS = (0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.45, 0.5)
"""Shares of z below which the bin-packing bound ignores shards; any value is valid, these are tried."""


@dataclass(frozen=True)
class Relaxation:
    """The best mix under a limit: a lower bound on the average load, and each group's cheapest candidate."""

    average_ms: float
    memory_price_M: Floats
    """ms per byte: what memory is worth at the optimum."""


class Candidates:
    """All candidates in flat arrays: N candidates, G groups of consecutive ones."""

    def __init__(self, groups: Sequence[Group], ranks: Ranks) -> None:
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
        # Bin-packing weights need single shards: runs of equal shards keep the arrays small.
        runs = [
            (n, *run) for n, c in enumerate(every) for run in zip(*np.unique(c.ms_S, return_counts=True), strict=True)
        ]
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
        hopeless = ~np.logical_or.reduceat(fits, self.start_G)
        allowed = np.flatnonzero(fits | hopeless[self.group_N])
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
            np.where(fits | hopeless[self.group_N], price @ self.memory_MN, np.inf), self.start_G
        )
        exact = float(least.sum() - price @ self.capacity_M)
        return np.where(short == short.max(), exact, 0.0) if short.min() < 1 else short, hopeless


def lower_bound(candidates: Candidates, upper_ms: float = np.inf) -> tuple[float, Relaxation] | None:
    """A time that no plan can beat and the relaxation that shows it; None where memory holds no plan.

    The bin-packing bound is sought below `upper_ms`, the time of a known plan.
    """
    found = _parametric(candidates)
    if found is None:
        return None
    bound, relaxation = found
    return max(bound, _packing_bound(candidates, bound, upper_ms)), relaxation


def _parametric(candidates: Candidates) -> tuple[float, Relaxation] | None:
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


def _packing_bound(candidates: Candidates, low: float, high: float) -> float:
    """The largest z between `low` and `high` that bisection proves too small."""
    if not np.isfinite(high):
        return low
    for _ in range(24):
        middle = (low + high) / 2
        if any(_weight(candidates, middle, small) > candidates.world_size * (1 + 1e-9) for small in SMALL_PARTS):
            low = middle
        else:
            high = middle
    return low


def _weight(candidates: Candidates, limit_ms: float, small: float) -> float:
    """Ranks needed at least: shards above 1 - `small` of the limit count a whole rank, those below `small` nothing."""
    share = candidates.run_ms / limit_ms
    weight = np.where(share > 1 - small, 1.0, np.where(share < small, 0.0, share)) * candidates.run_count
    per_candidate = np.zeros(len(candidates.total_N))
    np.add.at(per_candidate, candidates.run_of, weight)
    return float(candidates.least(per_candidate, limit_ms).sum())
