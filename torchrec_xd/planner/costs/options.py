"""The options of every table: each way of sharding it, with time and memory by torchrec's estimators.

The shards of one option have few different shapes (full blocks of rows, the last block, empty ones). The estimators get
one shard per shape, so that their work does not grow with the number of ranks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.constants import MIN_CW_DIM, POOLING_FACTOR, UVM_CACHING_RATIO
from torchrec.distributed.planner.enumerators import GUARDED_COMPUTE_KERNELS, get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption, Storage, Topology
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams, ShardingType

from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.calibration import perf_estimator
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.module_tables import TableRef

COLUMN_TYPES = (ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value)
COLUMN_DIMS = (32, 64, MIN_CW_DIM, 256, 512)
"""Minimum widths of column shards to try, besides half of the table; torchrec tries MIN_CW_DIM only."""
LOAD_FACTORS = (0.1, UVM_CACHING_RATIO, 0.4, 0.6)
"""Shares of a table's rows that its cache in HBM may hold, where HBM is short; elsewhere UVM_CACHING_RATIO is tried."""
ROOMY = 0.25
"""HBM is not short for a table whose weights, and those of all tables together, fill no more of it than this. Optimizer
states and buffers are at most about twice the weights."""


@dataclass(frozen=True)
class ShardRun:
    """`count` consecutive shards of equal shape and cost."""

    count: int
    rows: int
    dim: int
    perf: Perf
    storage: Storage


@dataclass(frozen=True)
class Option:
    """One way of sharding one table, with its costs: times in ms per step and rank, memory in bytes."""

    sharding_type: str
    kernel: str
    column_dim: int | None
    """Minimum width of column shards; None for other types."""
    cache_load_factor: float | None
    """Share of the rows that the cache in HBM holds; None for kernels without a cache."""
    runs: tuple[ShardRun, ...]

    @property
    def label(self) -> str:
        """Type and kernel, with the width of column shards and the load factor of a cache."""
        width = f"[{self.runs[0].dim}]" if self.column_dim else ""
        cache = f"[{self.cache_load_factor:g}]" if self.cache_load_factor else ""
        return f"{self.sharding_type}{width}/{self.kernel}{cache}"

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return sum(run.count for run in self.runs)

    @property
    def largest_ms(self) -> float:
        """Time of the slowest shard."""
        return float(max(run.perf.total for run in self.runs))

    @property
    def total_ms(self) -> float:
        """Time of all shards."""
        return float(sum(run.count * run.perf.total for run in self.runs))


def cost_tables(
    tables: Sequence[TableRef],
    cluster: Cluster,
    batch_size: int,
    pooling: Mapping[str, float],
    constraints: Sequence[Constraint] = (),
    *,
    stacked: bool = False,
) -> list[list[Option]]:
    """Every allowed option of every table, with its costs.

    Args:
        tables: what is sharded.
        cluster: over its ranks.
        batch_size: samples per rank and step.
        pooling: feature to mean ids per sample; 1 where not named.
        constraints: leave out options.
        stacked: also options with more column shards than ranks, which torchrec's planner may choose. They put several
            shards of a table on one rank, where the whole table would cost less.

    Raises:
        UserError: a table's constraints leave no option.
    """
    topology = cluster.topology()
    rows: list[list[tuple[ShardingOption, int | None, list[int]]]] = []
    # One look into each collection: torchrec goes through all of its tables for every one of them.
    collections = {id(table.module): table for table in tables}
    pooled = {key: ShardingOption.module_pooled(table.module, table.path) for key, table in collections.items()}
    short = _short_of_hbm(tables, cluster)
    for table in tables:
        own = [c for c in constraints if c.matches(table.name)]
        lengths = [pooling.get(feature, POOLING_FACTOR) for feature in table.features]
        options = [
            entry
            for entry in _uncosted(
                table,
                topology,
                own,
                LOAD_FACTORS if table.fqn in short else (UVM_CACHING_RATIO,),
                (batch_size, lengths, pooled[id(table.module)]),
            )
            if stacked or _placeable(entry[0].sharding_type, sum(entry[2]), topology)
        ]
        if not options:
            offered = ", ".join(sorted({f"{t}/{k}" for t, k in _types_and_kernels(table, cluster.device, ())}))
            raise UserError(
                f"constraints leave no way to shard table '{table.name}'; '{cluster.device}' has: {offered}"
            )
        rows.append(options)
    _estimate([option for row in rows for option, _, _ in row], tables, topology, cluster)
    return [[_costed(*entry) for entry in row] for row in rows]


def _types_and_kernels(table: TableRef, device: str, constraints: Sequence[Constraint]) -> Iterator[tuple[str, str]]:
    """As torchrec enumerates them: grid sharding and key-value kernels on request, `dense` only where no `fused` is."""
    asked_types = {kind for c in constraints for kind in c.sharding_types or ()}
    asked_kernels = {kernel for c in constraints for kernel in c.kernels or ()}
    guarded = {kernel.value for kernel in GUARDED_COMPUTE_KERNELS} - asked_kernels
    for kind in table.sharder.sharding_types(device):
        if kind == ShardingType.GRID_SHARD.value and kind not in asked_types:
            continue
        kernels = [kernel for kernel in table.sharder.compute_kernels(kind, device) if kernel not in guarded]
        for kernel in kernels:
            dense = kernel == EmbeddingComputeKernel.DENSE.value
            if dense and EmbeddingComputeKernel.FUSED.value in kernels:
                continue
            if all(c.allows(kind, kernel) for c in constraints):
                yield kind, kernel


def _uncosted(
    table: TableRef,
    topology: Topology,
    constraints: Sequence[Constraint],
    load_factors: Sequence[float],
    inputs: tuple[int, list[float], bool],
) -> Iterator[tuple[ShardingOption, int | None, list[int]]]:
    """Options with one shard per shape, their minimum column width, and the number of shards of each shape."""
    batch_size, lengths, is_pooled = inputs
    cut: dict[tuple[str, int | None], tuple[list[list[int]], list[int]]] = {}
    for kind, kernel in _types_and_kernels(table, topology.compute_device, constraints):
        for column_dim, cache in itertools.product(_column_dims(kind, table.dim), _caches(kernel, load_factors)):
            if (kind, column_dim) not in cut:
                cut[kind, column_dim] = _shapes(table, topology, kind, column_dim)
            shapes, counts = cut[kind, column_dim]
            option = ShardingOption(
                name=table.name,
                tensor=table.parameter,
                module=(table.path, table.module),
                input_lengths=lengths,
                batch_size=batch_size,
                sharding_type=kind,
                partition_by=get_partition_by_type(kind),
                compute_kernel=kernel,
                shards=[Shard(size=shape, offset=[0, 0]) for shape in shapes],
                is_pooled=is_pooled,
                cache_params=cache,
            )
            yield option, column_dim, counts


def _short_of_hbm(tables: Sequence[TableRef], cluster: Cluster) -> set[str]:
    """The tables for which caches of several sizes are tried: each size makes planning slower."""
    held = {table.fqn: table.parameter.numel() * table.parameter.element_size() for table in tables}
    if sum(held.values()) > ROOMY * cluster.hbm_bytes * cluster.world_size:
        return set(held)
    return {fqn for fqn, size in held.items() if size > ROOMY * cluster.hbm_bytes}


def _caches(kernel: str, load_factors: Sequence[float]) -> tuple[CacheParams | None, ...]:
    if kernel != EmbeddingComputeKernel.FUSED_UVM_CACHING.value:
        return (None,)
    return tuple(CacheParams(load_factor=factor) for factor in load_factors)


def _column_dims(kind: str, dim: int) -> tuple[int | None, ...]:
    """Minimum widths with different results: torchrec takes the next divisor of `dim` that is a multiple of 4."""
    if kind not in (*COLUMN_TYPES, ShardingType.GRID_SHARD.value):
        return (None,)
    widths = {
        next((w for w in range(least, dim) if dim % w == 0 and w % 4 == 0), dim): least
        for least in (*COLUMN_DIMS, max(dim // 2, COLUMN_DIMS[0]))
    }
    narrower = tuple(least for width, least in widths.items() if width < dim)
    return narrower or ((dim,) if kind == ShardingType.GRID_SHARD.value else ())


def _shapes(
    table: TableRef, topology: Topology, kind: str, column_dim: int | None
) -> tuple[list[list[int]], list[int]]:
    sizes, _ = calculate_shard_sizes_and_offsets(
        table.parameter, topology.world_size, topology.intra_group_size, kind, col_wise_shard_dim=column_dim
    )
    runs = [(list(shape), len(list(same))) for shape, same in itertools.groupby(tuple(size) for size in sizes)]
    return [shape for shape, _ in runs], [count for _, count in runs]


def _placeable(kind: str, num_shards: int, topology: Topology) -> bool:
    """Whether each shard can have a rank of its own."""
    ranks = topology.intra_group_size if kind == ShardingType.TABLE_COLUMN_WISE.value else topology.world_size
    return bool(num_shards <= ranks)


def _estimate(options: list[ShardingOption], tables: Sequence[TableRef], topology: Topology, cluster: Cluster) -> None:
    """Set the costs of every shard; the time of equal work is estimated once."""
    sharder_data = build_sharder_data_map({sharder_name(t.sharder.module_type): t.sharder for t in tables})
    EmbeddingStorageEstimator(topology=topology).estimate(options, sharder_data)
    calibrated = cluster.calibration is not None
    first: dict[tuple[object, ...], Shard] = {}
    uncosted: list[ShardingOption] = []
    for option in options:
        new = [shard for shard in option.shards if first.setdefault(_work(option, shard, calibrated), shard) is shard]
        if new:
            uncosted.append(copy.copy(option))
            uncosted[-1].shards = new
    perf_estimator(topology, cluster.calibration).estimate(uncosted, sharder_data)
    for option in options:
        for shard in option.shards:
            shard.perf = first[_work(option, shard, calibrated)].perf


def _work(option: ShardingOption, shard: Shard, calibrated: bool) -> tuple[object, ...]:
    """All that the time of a shard depends on; on its rows only if replicas are all-reduced or caches were measured."""
    return (
        option.module_type_key,
        option.sharding_type,
        option.compute_kernel,
        option.cache_load_factor,
        option.is_pooled,
        option.is_weighted,
        option.tensor.dtype,
        option.batch_size,
        tuple(option.input_lengths),
        shard.size[1],
        shard.size[0] if calibrated or option.sharding_type == ShardingType.DATA_PARALLEL.value else None,
    )


def _costed(option: ShardingOption, column_dim: int | None, counts: list[int]) -> Option:
    runs = []
    for shard, count in zip(option.shards, counts, strict=True):
        assert shard.perf is not None
        assert shard.storage is not None
        runs.append(ShardRun(count, shard.size[0], shard.size[1], shard.perf, shard.storage))
    return Option(option.sharding_type, option.compute_kernel, column_dim, option.cache_load_factor, tuple(runs))
