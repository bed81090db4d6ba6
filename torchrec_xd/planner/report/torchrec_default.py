"""Torchrec's own planner with its default settings, on the same tables, costs and limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.planners import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType

from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import rank_usage
from torchrec_xd.planner.costs.options import Option, cost_tables
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.module_tables import TableRef, module_tables
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.search.candidates import Ints


@dataclass(frozen=True)
class DefaultPlan:
    """The plan of torchrec's planner."""

    seconds: float
    slowest_rank_ms: float | None
    """None if it found no plan."""
    largest_hbm: int
    """HBM of the rank with most of it, bytes."""
    largest_ddr: int
    """Host memory of the rank with most of it, bytes."""


def default_plan(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> DefaultPlan:
    """Plan with `EmbeddingShardingPlanner`, and apply the same costs as to our plan.

    Raises:
        UserError: there are constraints that torchrec's planner does not support (ranks, together).
    """
    if any(c.together or c.ranks for c in settings.constraints):
        raise UserError(
            "torchrec's planner supports neither 'ranks' nor 'together' in constraints; leave them out to compare"
        )
    tables = module_tables(module, sharders)
    options = cost_tables(tables, cluster, settings.batch_size, settings.pooling, settings.constraints, stacked=True)
    planner = EmbeddingShardingPlanner(
        topology=cluster.topology(),
        batch_size=settings.batch_size,
        # The reservation is already taken off the memory of the cluster's topology.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        constraints={t.name: _constraints(t, o, settings) for t, o in zip(tables, options, strict=True)},
        stats=[],
    )
    began = time.perf_counter()
    try:
        plan = planner.plan(module, list(sharders))
    except PlannerError:
        return DefaultPlan(time.perf_counter() - began, None, 0, 0)
    seconds = time.perf_counter() - began
    chosen = [_match(plan, table, own) for table, own in zip(tables, options, strict=True)]
    usage = rank_usage([option for option, _ in chosen], [ranks for _, ranks in chosen], cluster.world_size)
    slowest = float((usage["compute"] + usage["comms"]).max())
    return DefaultPlan(seconds, slowest, int(usage["hbm"].max()), int(usage["ddr"].max()))


def _constraints(table: TableRef, options: Sequence[Option], settings: PlannerSettings) -> ParameterConstraints:
    lengths = [float(settings.pooling.get(feature, 1.0)) for feature in table.features]
    if not any(c.matches(table.name) for c in settings.constraints):
        return ParameterConstraints(pooling_factors=lengths)
    return ParameterConstraints(
        sharding_types=sorted({option.sharding_type for option in options}),
        compute_kernels=sorted({option.kernel for option in options}),
        pooling_factors=lengths,
    )


def _match(plan: ShardingPlan, table: TableRef, options: Sequence[Option]) -> tuple[Option, Ints]:
    """Our option for torchrec's choice, and its ranks. A single column shard is a whole table."""
    module_plan = plan.plan[table.path]
    chosen = module_plan[table.name]
    ranks = np.array(chosen.ranks, dtype=np.int64)
    kind, count = chosen.sharding_type, len(ranks)
    if kind in (ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value) and count == 1:
        kind = ShardingType.TABLE_WISE.value
    cached = chosen.compute_kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value
    factor = UVM_CACHING_RATIO if cached else None
    for option in options:
        own = (option.sharding_type, option.kernel, option.cache_load_factor, option.num_shards)
        if own == (kind, chosen.compute_kernel, factor, count):
            return option, ranks
    raise AssertionError(f"torchrec chose {chosen.sharding_type}/{chosen.compute_kernel} x {count} for {table.fqn}")
