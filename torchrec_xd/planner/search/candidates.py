"""Candidates of the search, and the load of the ranks.

Shape legend: W ranks, S shards of a candidate, M kinds of memory (HBM, DDR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torchrec.distributed.types import ShardingType

from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.options import Option
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.constraints import Constraint, allowed_ranks, groups_of
from torchrec_xd.planner.inputs.module_tables import TableRef

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Layout = Literal["ranks", "node_columns", "node_rows", "uniform"]

LAYOUTS: dict[str, Layout] = {
    ShardingType.TABLE_WISE.value: "ranks",
    ShardingType.COLUMN_WISE.value: "ranks",
    ShardingType.TABLE_COLUMN_WISE.value: "node_columns",
    ShardingType.TABLE_ROW_WISE.value: "node_rows",
    ShardingType.GRID_SHARD.value: "node_rows",
    ShardingType.ROW_WISE.value: "uniform",
    ShardingType.DATA_PARALLEL.value: "uniform",
}
"""Where the shards of each type may go.

ranks: any different ranks; node_columns: different ranks of one node; node_rows: whole nodes, in order; uniform: every
rank, in order.
"""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way of sharding a group: one option for each of its tables."""

    layout: Layout
    options: tuple[Option, ...]
    ms_S: Floats
    memory_MS: Floats
    ranks: Ints | None
    """The only ranks that are allowed; None for all."""
    largest_ms: float
    total_ms: float
    memory_M: Floats
    """Bytes of all shards."""

    @property
    def shape(self) -> tuple[str, int]:
        """Sharding type and number of shards. Candidates that share both differ in kernel and cache only."""
        return self.options[0].sharding_type, len(self.ms_S)


@dataclass(frozen=True)
class TableGroup:
    """Co-located tables (most often a single one) and every way of sharding them."""

    tables: tuple[int, ...]
    candidates: tuple[Candidate, ...]


def build_groups(
    tables: Sequence[TableRef], options: Sequence[Sequence[Option]], constraints: Sequence[Constraint]
) -> list[TableGroup]:
    """Merge tables that the constraints co-locate, and list the candidates of each group.

    Raises:
        UserError: co-located tables have no sharding type and kernel in common, or pins exclude each other.
    """
    names = [table.name for table in tables]
    groups = []
    for members in groups_of(constraints, names):
        pins = [pin for i in members if (pin := allowed_ranks(constraints, names[i])) is not None]
        ranks = np.array(sorted(frozenset.intersection(*pins)), dtype=np.int64) if pins else None
        keyed = [
            {(o.sharding_type, o.kernel, o.cache_load_factor, o.num_shards): o for o in options[i]} for i in members
        ]
        common = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
        candidates = [_candidate([other[key] for other in keyed], ranks) for key in common]
        candidates = [c for c in candidates if ranks is None or len(c.ms_S) <= len(ranks)]
        if not candidates:
            where = "" if ranks is None else f" on ranks {ranks.tolist()}"
            raise UserError(
                f"no sharding type and kernel is allowed for all of: {', '.join(names[i] for i in members)}"
                f"{where}; relax the constraints on them"
            )
        groups.append(TableGroup(tuple(members), tuple(candidates)))
    return groups


def _candidate(options: list[Option], ranks: Ints | None) -> Candidate:
    ms = np.sum([_spread(o, [run.perf.total for run in o.runs]) for o in options], axis=0)
    hbm = np.sum([_spread(o, [run.storage.hbm for run in o.runs]) for o in options], axis=0)
    ddr = np.sum([_spread(o, [run.storage.ddr for run in o.runs]) for o in options], axis=0)
    stacked = np.stack([hbm, ddr])
    layout = LAYOUTS[options[0].sharding_type]
    largest, total = float(ms.max()), float(ms.sum())
    return Candidate(layout, tuple(options), ms, stacked, ranks, largest, total, stacked.sum(axis=1))


def _spread(option: Option, values: list[Any]) -> Floats:
    return np.repeat(np.array(values, dtype=np.float64), [run.count for run in option.runs])


class RankState:
    """Load and memory of every rank, updated as candidates are placed and removed."""

    def __init__(self, cluster: Cluster) -> None:
        self.node_size = cluster.node_size
        self.load_W: Floats = np.zeros(cluster.world_size)
        self.memory_MW: Floats = np.zeros((2, cluster.world_size))
        self.limit_M: Floats = np.array([cluster.hbm_bytes, cluster.ddr_bytes], dtype=np.float64)
        self._all = np.arange(cluster.world_size)

    def put(self, candidate: Candidate, ranks: Ints) -> None:
        """Add a candidate to the ranks that hold its shards."""
        self.load_W[ranks] += candidate.ms_S
        self.memory_MW[:, ranks] += candidate.memory_MS

    def take(self, candidate: Candidate, ranks: Ints) -> None:
        """Undo `put`."""
        self.load_W[ranks] -= candidate.ms_S
        self.memory_MW[:, ranks] -= candidate.memory_MS

    def best(self, candidate: Candidate) -> tuple[Ints, float] | None:
        """The ranks for a candidate whose slowest one is fastest, and that rank's time; None where it does not fit."""
        if candidate.layout == "uniform":
            if (self.memory_MW + candidate.memory_MS > self.limit_M[:, None]).any():
                return None
            return self._all, float((self.load_W + candidate.ms_S).max())
        if candidate.layout == "ranks":
            return self._best_ranks(candidate)
        return self._best_nodes(candidate)

    def _free(self, candidate: Candidate) -> Floats:
        """Loads of ranks with room for one shard, infinity for the others. All shards of the candidate are equal."""
        room = (self.memory_MW <= (self.limit_M - candidate.memory_MS[:, 0])[:, None]).all(axis=0)
        if candidate.ranks is not None:
            pinned = np.zeros_like(room)
            pinned[candidate.ranks] = True
            room &= pinned
        return np.where(room, self.load_W, np.inf)

    def _best_ranks(self, candidate: Candidate) -> tuple[Ints, float] | None:
        free_W = self._free(candidate)
        count = len(candidate.ms_S)
        ranks = np.array([free_W.argmin()]) if count == 1 else np.argsort(free_W, kind="stable")[:count]
        peak = float(free_W[ranks[-1]]) + candidate.largest_ms
        return (ranks, peak) if np.isfinite(peak) else None

    def _best_nodes(self, candidate: Candidate) -> tuple[Ints, float] | None:
        size, count = self.node_size, len(candidate.ms_S)
        if candidate.layout == "node_columns":
            free = self._free(candidate).reshape(-1, size)
            order = np.argsort(free, axis=1, kind="stable")[:, :count]
            peaks = np.take_along_axis(free, order[:, -1:], axis=1)[:, 0]
            node = int(peaks.argmin())
            peak = float(peaks[node]) + candidate.largest_ms
            return (node * size + order[node], peak) if np.isfinite(peak) else None
        nodes = count // size
        shards = candidate.ms_S.reshape(nodes, size)
        memory = candidate.memory_MS.reshape(2, nodes, size).max(axis=1)
        load = self.load_W.reshape(-1, size)
        room = (self.memory_MW.reshape(2, -1, size) + memory[:, None] <= self.limit_M[:, None, None]).all(axis=(0, 2))
        peaks = np.where(room, (load + shards.max(axis=0)).max(axis=1), np.inf)
        chosen = np.argsort(peaks, kind="stable")[:nodes]
        peak = float(peaks[chosen[-1]]) if len(chosen) == nodes else np.inf
        ranks = (chosen[:, None] * size + np.arange(size)).ravel()
        return (ranks, peak) if np.isfinite(peak) else None
