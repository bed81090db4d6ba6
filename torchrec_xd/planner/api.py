"""The planner's entry: from a module to its sharding plan.

`make_plan` goes through the sub-packages in order: `inputs` (cluster, tables, constraints), `costs` (every way of
sharding every table, and what it costs), `search` (which of them, on which ranks). The result is the file that
`plan.py` describes; `report` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from torchrec_xd.planner.costs.options import Option
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.settings import PlannerSettings, ShardingSettings
from torchrec_xd.planner.plan import Plan, PlannedTable, load_plan, read_plan
from torchrec_xd.planner.report.infeasible import infeasible_error
from torchrec_xd.planner.search.candidates import Floats, Ints
from torchrec_xd.planner.search.problem import PlanningProblem, module_problem
from torchrec_xd.planner.search.search import Found, NotFound, search


@dataclass(frozen=True)
class Planning:
    """A plan, the problem that it solves, and how long planning took."""

    plan: Plan
    problem: PlanningProblem
    chosen: list[Option]
    """Option of each table."""
    ranks: list[Ints]
    """Ranks of each table's shards."""
    seconds: float


class RunPlan(NamedTuple):
    """The sharding plan of a run, in two forms."""

    plan: Plan
    """As the run folder keeps it, with its estimates."""
    sharding_plan: ShardingPlan
    """As torchrec takes it."""


def make_plan(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> Planning:
    """Plan `module` for `cluster`. Needs neither a process group nor weights: the meta device will do.

    Raises:
        InfeasibleError: no plan fits; the error says what does not fit, and by how many bytes.
        UserError: constraints that match nothing or leave nothing.
    """
    began = time.perf_counter()
    problem = module_problem(module, sharders, cluster, settings)
    found = search(problem.groups, cluster, settings.effort)
    if isinstance(found, NotFound):
        raise infeasible_error(problem, found, time.perf_counter() - began)
    chosen: list[Option] = [problem.options[0][0]] * len(problem.tables)
    ranks: list[Ints] = [np.empty(0, dtype=np.int64)] * len(problem.tables)
    for group, placed in zip(problem.groups, found.placed, strict=True):
        for table, option in zip(group.tables, placed.candidate.options, strict=True):
            chosen[table], ranks[table] = option, placed.ranks
    plan = _plan(problem, chosen, ranks, found)
    return Planning(plan, problem, chosen, ranks, time.perf_counter() - began)


def plan_module(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> ShardingPlan:
    """The plan for DistributedModelParallel, as `EmbeddingShardingPlanner.plan` returns it. All ranks find the same.

    Raises:
        InfeasibleError: no plan fits.
        UserError: constraints that match nothing or leave nothing.
    """
    planning = make_plan(module, sharders, cluster, settings)
    return planning.plan.sharding_plan(planning.problem.tables)


def plan_run(
    module: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    cluster: Cluster,
    settings: ShardingSettings,
    batch_size: int,
    pooling: Mapping[str, float],
) -> RunPlan:
    """The plan of a run: read from the file that `settings` names, else made now.

    Args:
        module: the run's model, its tables on the meta device.
        sharders: as given to DistributedModelParallel.
        cluster: the run's.
        settings: the run's section `sharding`.
        batch_size: samples per rank and step.
        pooling: feature to mean ids per sample; 1 where not named.

    Raises:
        InfeasibleError: no plan fits.
        UserError: the plan in the file is not for this model and cluster, constraints match nothing or leave nothing,
            or a table cannot be exchanged in the precision that `communication` asks for.
    """
    if settings.plan is not None:
        plan = read_plan(settings.plan)
        loaded = load_plan(settings.plan, module, cluster.world_size, sharders, cluster.device)
    else:
        planner = PlannerSettings(batch_size=batch_size, pooling=dict(pooling), constraints=settings.all_constraints)
        planning = make_plan(module, sharders, cluster, planner)
        plan, loaded = planning.plan, planning.plan.sharding_plan(planning.problem.tables)
    settings.communication.check(module, loaded)
    return RunPlan(plan, loaded)


def rank_usage(options: Sequence[Option], ranks: Sequence[Ints], world_size: int) -> dict[str, Floats]:
    """Time and memory of each rank under a plan: `compute` and `comms` in ms, `hbm` and `ddr` in bytes, each `[W]`."""
    usage = {key: np.zeros(world_size) for key in ("compute", "comms", "hbm", "ddr")}
    for option, shards in zip(options, ranks, strict=True):
        at = 0
        for run in option.runs:
            where = shards[at : at + run.count]
            comms = run.perf.fwd_comms + run.perf.bwd_comms
            # Not +=: several shards of one table may share a rank in torchrec's own plans.
            np.add.at(usage["compute"], where, run.perf.total - comms)
            np.add.at(usage["comms"], where, comms)
            np.add.at(usage["hbm"], where, run.storage.hbm)
            np.add.at(usage["ddr"], where, run.storage.ddr)
            at += run.count
    return usage


def _plan(problem: PlanningProblem, chosen: Sequence[Option], ranks: Sequence[Ints], found: Found) -> Plan:
    world_size = problem.cluster.world_size
    usage = rank_usage(chosen, ranks, world_size)
    tables = tuple(
        PlannedTable(
            path=table.path,
            name=table.name,
            rows=table.rows,
            dim=table.dim,
            dtype=table.dtype,
            sharding_type=option.sharding_type,
            kernel=option.kernel,
            column_dim=option.column_dim,
            cache_load_factor=option.cache_load_factor,
            ranks="all" if option.sharding_type in ("row_wise", "data_parallel") else tuple(where.tolist()),
            ms=option.total_ms,
            hbm=sum(run.count * run.storage.hbm for run in option.runs),
            ddr=sum(run.count * run.storage.ddr for run in option.runs),
        )
        for table, option, where in zip(problem.tables, chosen, ranks, strict=True)
    )
    slowest = float((usage["compute"] + usage["comms"]).max())
    return Plan(
        cluster=problem.cluster,
        batch_size=problem.settings.batch_size,
        slowest_rank_ms=slowest,
        lower_bound_ms=min(found.lower_bound_ms, slowest),
        tables=tables,
        rank_compute_ms=tuple(usage["compute"].tolist()),
        rank_comms_ms=tuple(usage["comms"].tolist()),
        rank_hbm=tuple(int(value) for value in usage["hbm"]),
        rank_ddr=tuple(int(value) for value in usage["ddr"]),
    )
