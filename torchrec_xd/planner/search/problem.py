"""The problem that the search solves: tables with every way of sharding them, on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.types import ModuleSharder

from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.options import Option, cost_tables
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.constraints import check_constraints
from torchrec_xd.planner.inputs.module_tables import TableRef, module_tables
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.search.candidates import TableGroup, build_groups


@dataclass(frozen=True)
class PlanningProblem:
    """Tables with their options and costs."""

    tables: list[TableRef]
    options: list[list[Option]]
    """Of each table."""
    groups: list[TableGroup]
    """The tables again, merged where they must be co-located."""
    cluster: Cluster
    settings: PlannerSettings


def module_problem(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> PlanningProblem:
    """The problem of planning the tables of a module.

    Raises:
        UserError: the module has no tables, or constraints match nothing or leave nothing.
    """
    tables = module_tables(module, sharders)
    if not tables:
        names = ", ".join(sharder.module_type.__name__ for sharder in sharders)
        raise UserError(f"{type(module).__name__} has no tables to shard; they must be in one of: {names}")
    return table_problem(tables, cluster, settings)


def table_problem(tables: list[TableRef], cluster: Cluster, settings: PlannerSettings) -> PlanningProblem:
    """The problem of planning these tables.

    Raises:
        UserError: constraints match nothing or leave nothing.
    """
    check_constraints(settings.constraints, [table.name for table in tables], cluster.world_size)
    options = cost_tables(tables, cluster, settings.batch_size, settings.pooling, settings.constraints)
    return PlanningProblem(tables, options, build_groups(tables, options, settings.constraints), cluster, settings)
