"""Iterated local search: makes the slowest rank faster, group by group, and perturbs the plan at local optima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.search.candidates import Candidate, Floats, Ints, RankState, TableGroup

GROUPS_TRIED = 24
"""Groups that one step tries to move, at most."""
CLOSE_ENOUGH = 1e-5
"""Relative gap to the lower bound at which the search ends."""
COST_NOISE = 3.0
"""Costs are multiplied with up to this in every second refill: the cheapest candidates may not fit together."""
LESS = 1 - 1e-9
"""Smaller improvements are rounding."""


class Assignment:
    """Candidate and ranks of every group, and the resulting load."""

    def __init__(self, ranks: RankState, chosen: list[int], placed: list[Ints]) -> None:
        self.state = ranks
        self.chosen = chosen
        self.ranks = placed

    @property
    def slowest_ms(self) -> float:
        """Time of the slowest rank."""
        return float(self.state.load_W.max())

    def put(self, group: int, candidate: Candidate, index: int, ranks: Ints) -> None:
        """Place a group that is not placed yet."""
        self.state.put(candidate, ranks)
        self.chosen[group] = index
        self.ranks[group] = ranks


@dataclass(frozen=True)
class _Snapshot:
    chosen: list[int]
    ranks: list[Ints]
    load_W: Floats
    memory_MW: Floats
    on_rank: npt.NDArray[np.bool_]
    whole: _Whole


class _Whole:
    """The groups that lie whole on one rank and may lie on any, as arrays: swaps look at all of them."""

    def __init__(self, groups: int) -> None:
        self.movable_G = np.zeros(groups, dtype=bool)
        self.rank_G = np.zeros(groups, dtype=np.int64)
        self.ms_G = np.zeros(groups)
        self.memory_MG = np.zeros((2, groups))

    def put(self, group: int, candidate: Candidate, ranks: Ints) -> None:
        """Note where a group lies now."""
        movable = len(ranks) == 1 and candidate.layout == "ranks" and candidate.ranks is None
        self.movable_G[group] = movable
        if movable:
            self.rank_G[group], self.ms_G[group] = ranks[0], candidate.ms_S[0]
            self.memory_MG[:, group] = candidate.memory_M

    def copy(self) -> _Whole:
        """The same, to go back to."""
        other = _Whole(0)
        other.movable_G, other.rank_G = self.movable_G.copy(), self.rank_G.copy()
        other.ms_G, other.memory_MG = self.ms_G.copy(), self.memory_MG.copy()
        return other


class LocalSearch:
    """Improves one assignment in place."""

    def __init__(self, groups: Sequence[TableGroup], cluster: Cluster, assignment: Assignment, lower_ms: float) -> None:
        self.groups = groups
        self.assignment = assignment
        self.state = assignment.state
        self.goal_ms = lower_ms * (1 + CLOSE_ENOUGH)
        self.random = np.random.default_rng(0)
        self.on_rank = np.zeros((len(groups), cluster.world_size), dtype=bool)
        self.whole = _Whole(len(groups))
        for group, ranks in enumerate(assignment.ranks):
            self.on_rank[group, ranks] = True
            self.whole.put(group, self._candidate(group), ranks)
        self.total_ms = [np.array([candidate.total_ms for candidate in group.candidates]) for group in groups]

    def run(self, effort: int) -> Assignment:
        """Descend to a local optimum, then perturb until `effort` perturbations in a row have not improved it."""
        self._descend()
        failures = 0
        while failures < effort and self.assignment.slowest_ms > self.goal_ms:
            failures = 0 if self._ruin_and_recreate() else failures + 1
        return self.assignment

    def _descend(self) -> None:
        while self.assignment.slowest_ms > self.goal_ms:
            slowest = int(self.state.load_W.argmax())
            if not (self._move(slowest) or self._swap(slowest)):
                return

    def _candidate(self, group: int) -> Candidate:
        return self.groups[group].candidates[self.assignment.chosen[group]]

    def _take(self, group: int) -> tuple[int, Ints]:
        index, ranks = self.assignment.chosen[group], self.assignment.ranks[group]
        self.state.take(self._candidate(group), ranks)
        self.on_rank[group, ranks] = False
        return index, ranks

    def _put(self, group: int, index: int, ranks: Ints) -> None:
        self.assignment.put(group, self.groups[group].candidates[index], index, ranks)
        self.on_rank[group, ranks] = True
        self.whole.put(group, self.groups[group].candidates[index], ranks)

    def _move(self, slowest: int) -> bool:
        """Reshard or move the group of the slowest rank whose new ranks are then fastest."""
        peak = float(self.state.load_W[slowest])
        members = np.flatnonzero(self.on_rank[:, slowest])
        if len(members) > GROUPS_TRIED:
            members = self.random.choice(members, GROUPS_TRIED, replace=False)
        best: tuple[float, int, int, Ints] | None = None
        for group in members.tolist():
            old_index, old_ranks = self._take(group)
            left = float(self.state.load_W[old_ranks].max())
            spot = self._cheapest_below(group, peak * LESS, left)
            self._put(group, old_index, old_ranks)
            if spot is not None and (best is None or spot[0] < best[0]):
                best = (spot[0], group, *spot[1:])
        if best is None:
            return False
        _, group, index, ranks = best
        self._take(group)
        self._put(group, index, ranks)
        return True

    def _cheapest_below(self, group: int, limit: float, left: float) -> tuple[float, int, Ints] | None:
        """The fastest place of a group below `limit`: (time of the slowest affected rank, candidate, ranks)."""
        best: tuple[float, int, Ints] | None = None
        lowest, mean = float(self.state.load_W.min()), float(self.state.load_W.mean())
        for index, candidate in enumerate(self.groups[group].candidates):
            floor = mean if candidate.layout == "uniform" else lowest
            if floor + candidate.largest_ms >= (limit if best is None else best[0]):
                continue
            spot = self.state.best(candidate)
            if spot is None:
                continue
            peak = max(spot[1], left)
            if peak < limit and (best is None or peak < best[0]):
                best = (peak, index, spot[0])
        return best

    def _swap(self, slowest: int) -> bool:
        """Swap a whole table of the slowest rank with a faster one of another rank."""
        whole = self.whole
        mine = np.flatnonzero(whole.movable_G & self.on_rank[:, slowest])
        others = np.flatnonzero(whole.movable_G & ~self.on_rank[:, slowest])
        if not len(mine) or not len(others):
            return False
        load, memory, limit = self.state.load_W, self.state.memory_MW, self.state.limit_M[:, None]
        at, their_ms, their_memory = whole.rank_G[others], whole.ms_G[others], whole.memory_MG[:, others]
        load_at, bound = load[at], load[slowest] * LESS
        best: tuple[int, int] | None = None
        for group in mine.tolist():
            delta = whole.ms_G[group] - their_ms
            peak = np.where(delta > 0, np.maximum(load[slowest] - delta, load_at + delta), np.inf)
            faster = np.flatnonzero(peak < bound)
            more = whole.memory_MG[:, [group]] - their_memory[:, faster]
            fits = ((memory[:, at[faster]] + more <= limit) & (memory[:, [slowest]] - more <= limit)).all(axis=0)
            faster = faster[fits]
            if len(faster):
                other = int(faster[peak[faster].argmin()])
                bound, best = peak[other], (group, int(others[other]))
        if best is None:
            return False
        group, other = best
        (index, ranks), (other_index, other_ranks) = self._take(group), self._take(other)
        self._put(group, index, other_ranks)
        self._put(other, other_index, ranks)
        return True

    def _ruin_and_recreate(self) -> bool:
        """Empty the slowest rank and a few others and fill them again in random order; undo it if nothing improved."""
        before = self.assignment.slowest_ms
        saved = self._snapshot()
        slowest = int(self.state.load_W.argmax())
        victims = self.random.choice(self.on_rank.shape[1], min(3, self.on_rank.shape[1]), replace=False)
        members = np.flatnonzero(self.on_rank[:, slowest] | self.on_rank[:, victims].any(axis=1))
        if len(members) > GROUPS_TRIED:
            members = self.random.choice(members, GROUPS_TRIED, replace=False)
        for group in members.tolist():
            self._take(group)
        if self._refill(members, before * LESS):
            self._descend()
            if self.assignment.slowest_ms < before * LESS:
                return True
        self._restore(saved)
        return False

    def _refill(self, members: Ints, limit: float) -> bool:
        """Slowest groups first, each with its cheapest candidate that ends below `limit`; both orders with noise."""
        noise = self.random.uniform(0.5, 1.5, len(members))
        size = np.array([self._candidate(group).largest_ms for group in members]) * noise
        noise = self.random.choice((1.0, COST_NOISE))
        for group in members[np.argsort(-size)].tolist():
            found = self._first_below(group, limit, noise)
            if found is None:
                return False
            self._put(group, *found)
        return True

    def _first_below(self, group: int, limit: float, noise: float) -> tuple[int, Ints] | None:
        lowest = float(self.state.load_W.min())
        totals = self.total_ms[group]
        for index in np.argsort(totals * self.random.uniform(1.0, noise, len(totals)), kind="stable").tolist():
            candidate = self.groups[group].candidates[index]
            if lowest + candidate.largest_ms < limit:
                spot = self.state.best(candidate)
                if spot is not None and spot[1] < limit:
                    return index, spot[0]
        return None

    def _snapshot(self) -> _Snapshot:
        assignment, state = self.assignment, self.state
        return _Snapshot(
            assignment.chosen[:],
            assignment.ranks[:],
            state.load_W.copy(),
            state.memory_MW.copy(),
            self.on_rank.copy(),
            self.whole.copy(),
        )

    def _restore(self, saved: _Snapshot) -> None:
        self.assignment.chosen, self.assignment.ranks = saved.chosen, saved.ranks
        self.state.load_W, self.state.memory_MW, self.on_rank = saved.load_W, saved.memory_MW, saved.on_rank
        self.whole = saved.whole
