"""A lower bound on the time of the slowest rank of any plan: it certifies how good a plan is.

Under a limit z on the slowest rank, only candidates whose largest shard takes at most z are possible. A linear program
chooses among them for every group, fractions allowed, with the memory of all ranks pooled, so that the total time is
least. The total must not exceed world size x z; the smallest z for which it does not is a lower bound. The duals of the
memory limits are the shadow prices of memory that guide the search.

Two arguments raise the bound. Groups that fit in no other way must be split over all ranks, and leave less time there
for the others. Shards that take more than half of that time each need a rank of their own (dual feasible functions,
known from bin packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrec_xd.planner.search.candidates import Floats, Ints, RankState, TableGroup

SMALL_PARTS = (0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.45, 0.5)
"""Parts of z below which the bin-packing bound ignores shards. Every value gives a valid bound; these are tried."""
BISECTIONS = 24
"""Steps of the search for the raised bound."""


@dataclass(frozen=True)
class Relaxation:
    """Solution of the linear program under a limit."""

    average_ms: float
    """Lower bound on the mean load of a rank."""
    memory_price_M: Floats
    """Shadow price of memory, ms per byte."""


class Candidates:
    """The candidates of all groups in flat arrays: N candidates, G groups of consecutive ones."""

    def __init__(self, groups: Sequence[TableGroup], ranks: RankState) -> None:
        every = [candidate for group in groups for candidate in group.candidates]
        self.world_size = len(ranks.load_W)
        self.start_G: Ints = np.cumsum([0, *(len(group.candidates) for group in groups)])[:-1]
        self.group_N: Ints = np.repeat(np.arange(len(groups)), [len(group.candidates) for group in groups])
        self.total_N: Floats = np.array([c.total_ms for c in every])
        self.memory_MN: Floats = np.array([c.memory_M for c in every]).T
        shard_fits = np.array([(c.memory_MS <= ranks.limit_M[:, None]).all() for c in every])
        self.largest_N: Floats = np.where(shard_fits, [c.largest_ms for c in every], np.inf)
        """Time of the largest shard; infinite where a shard exceeds the memory of a rank."""
        self.capacity_M: Floats = ranks.limit_M * self.world_size
        uniform = [float(c.ms_S.min()) if c.layout == "uniform" else np.nan for c in every]
        self.uniform_N: Floats = np.array(uniform)
        """Least time on any rank of a candidate that takes all ranks; nan for the others."""
        # The bin-packing bound needs single shards; runs of equal ones keep the arrays small.
        runs = [(n, ms, count) for n, c in enumerate(every) for ms, count in _runs(c.ms_S)]
        self.run_of: Ints = np.array([run[0] for run in runs])
        self.run_ms: Floats = np.array([run[1] for run in runs], dtype=np.float64)
        self.run_count: Floats = np.array([run[2] for run in runs], dtype=np.float64)

    def least(self, cost_N: Floats, limit_ms: float) -> Floats:
        """Least cost of each group among candidates with shards up to `limit_ms`, `[G]`."""
        least: Floats = np.minimum.reduceat(np.where(self.largest_N <= limit_ms, cost_N, np.inf), self.start_G)
        return least

    def cheapest(self, price_M: Floats, limit_ms: float) -> Ints:
        """Cheapest candidate of each group with shards up to `limit_ms`, `[G]`; -1 where there is none.

        The cost of a candidate is its time and its memory at `price_M` ms per byte.
        """
        cost = np.where(self.largest_N <= limit_ms, self.total_N + price_M @ self.memory_MN, np.inf)
        order = np.lexsort((cost, self.group_N))
        first = order[self.start_G]
        return np.where(np.isfinite(cost[first]), first, -1)

    def relax(self, limit_ms: float) -> Relaxation | None:
        """The linear program with shards up to `limit_ms`; None where memory is not sufficient."""
        free = np.zeros(2)
        chosen = self.cheapest(free, limit_ms)
        if (chosen < 0).any():
            return None
        if (self.memory_MN[:, chosen].sum(axis=1) <= self.capacity_M).all():
            return Relaxation(float(self.total_N[chosen].sum()) / self.world_size, free)
        return self._solve(np.flatnonzero(self.largest_N <= limit_ms))

    def _solve(self, allowed: Ints) -> Relaxation | None:
        # In units of the capacity and of the mean time: the solver needs numbers near one.
        scale = max(float(self.total_N[allowed].mean()), 1e-30)
        used = [m for m in range(2) if self.memory_MN[m, allowed].any()]
        capacity = np.maximum(self.capacity_M[used], 1.0)
        group = self.group_N[allowed]
        one_each = _one_each(group, len(self.start_G), len(allowed))
        for method in ("highs", "highs-ipm"):
            # Close to infeasibility the simplex method may end without a result; the interior point method does not.
            solved = _minimize(
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
        # Any dual value is a valid bound, whatever the tolerance of the solver.
        least = self.least(self.total_N + price @ self.memory_MN, float(self.largest_N[allowed].max()))
        dual = float(least.sum() - price @ self.capacity_M)
        return Relaxation(dual / self.world_size, price)

    def least_shortage(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Bytes (HBM, DDR) that all ranks together lack, at least; and which groups fit on no rank, `[G]`.

        The bytes include the groups that fit on no rank.
        """
        fits = np.isfinite(self.largest_N)
        oversized = ~np.logical_or.reduceat(fits, self.start_G)
        allowed = np.flatnonzero(fits | oversized[self.group_N])
        unit = float(max(self.capacity_M.max(), 1.0))
        solved = _minimize(
            np.concatenate([np.zeros(len(allowed)), np.ones(2)]),
            A_ub=np.hstack([self.memory_MN[:, allowed] / unit, -np.eye(2)]),
            b_ub=self.capacity_M / unit,
            A_eq=_one_each(self.group_N[allowed], len(self.start_G), len(allowed) + 2),
            b_eq=np.ones(len(self.start_G)),
            method="highs",
        )
        assert solved.status == 0, solved.message
        short: Floats = solved.x[-2:] * unit
        # The solver rounds. The dual value is exact in bytes, most often, if only one kind of memory is short.
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
    """The bound from the linear program, and its solution; None where memory is not sufficient for any plan."""
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
    """The largest limit between a bound and the time of a plan that is proved too small, found by bisection."""
    for _ in range(BISECTIONS):
        middle = (low_ms + high_ms) / 2
        if _too_small(candidates, middle, relaxation.memory_price_M):
            low_ms = middle
        else:
            high_ms = middle
    return low_ms


def _too_small(candidates: Candidates, limit_ms: float, price_M: Floats) -> bool:
    """Whether it is proved that no plan keeps the limit on the slowest rank.

    Groups whose shards are too large for every other candidate must take all ranks. Their time there leaves less for
    the others, which may force more groups to do so.
    """
    size, uniform = candidates.largest_N, candidates.uniform_N
    # Slack, so that rounding does not prove a limit too small that is not.
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
    """Ranks that the shards need at least: parts above 1 - `small` of `room_ms` count 1, those below `small` 0."""
    share = candidates.run_ms / room_ms
    weight = np.where(share > 1 - small, 1.0, np.where(share < small, 0.0, share)) * candidates.run_count
    per_candidate = np.zeros(len(candidates.total_N))
    np.add.at(per_candidate, candidates.run_of, weight)
    least = np.minimum.reduceat(np.where(allowed, per_candidate, np.inf), candidates.start_G)
    return float(least[~forced].sum())


def _one_each(group_N: npt.NDArray[Any], groups: int, columns: int) -> Any:
    """The sparse matrix `[groups, columns]` that adds up the choices of each group; further columns are empty."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - as below

    return csr_array((np.ones(len(group_N)), (group_N, np.arange(len(group_N)))), shape=(groups, columns))


def _minimize(costs: Floats, **constraints: Any) -> Any:
    from scipy.optimize import linprog  # noqa: PLC0415 - takes .5 s to import, and one rank is planned without it

    return linprog(costs, **constraints)
