"""What the search has to solve: tables with every way of sharding them, a cluster, settings."""

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
    """Tables, every option's price, and the groups that are placed."""

    tables: list[TableRef]
    options: list[list[Option]]
    groups: list[TableGroup]
    cluster: Cluster
    settings: PlannerSettings


def module_problem(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> PlanningProblem:
    """The module's tables with every option's price.

    Raises:
        UserError: no tables, or constraints that match nothing or leave nothing.
    """
    tables = module_tables(module, sharders)
    if not tables:
        names = ", ".join(sharder.module_type.__name__ for sharder in sharders)
        raise UserError(f"{type(module).__name__} holds no table that the sharders know ({names})")
    return table_problem(tables, cluster, settings)


def table_problem(tables: list[TableRef], cluster: Cluster, settings: PlannerSettings) -> PlanningProblem:
    """The same for tables that were found before."""
    check_constraints(settings.constraints, [table.name for table in tables], cluster.world_size)
    options = cost_tables(tables, cluster, settings.batch_size, settings.pooling, settings.constraints)
    return PlanningProblem(tables, options, build_groups(tables, options, settings.constraints), cluster, settings)
