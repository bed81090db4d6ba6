"""The planner's entry: from a module to its sharding plan.

`make_plan` goes through the sub-packages in order: `inputs` (cluster, tables, constraints), `costs` (every way of
sharding every table, and what it costs), `search` (which of them, on which ranks). The result is the file that
`plan.py` describes, and `report` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.options import Option, TableRef, module_tables, price_tables
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.constraints import Constraint, check_constraints
from torchrec_xd.planner.plan import Plan, PlannedTable, load_plan, read_plan
from torchrec_xd.planner.search.candidates import Floats, Ints, TableGroup, build_groups
from torchrec_xd.planner.search.search import Found, NotFound, search
from torchrec_xd.settings import Settings


class PlannerSettings(Settings):
    """What is planned besides the tables and the cluster."""

    batch_size: PositiveInt = 512
    """Samples per rank and step."""
    pooling: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Feature to mean ids per sample; 1 where not named."""
    constraints: tuple[Constraint, ...] = ()
    """Pins, bans and co-locations."""
    effort: PositiveInt = 400
    """Consecutive non-improving iterations after which the search ends. Equal efforts find equal plans."""


class ShardingSettings(Settings):
    """Where the tables of a run may lie."""

    types: tuple[Literal["table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel"], ...] = Field(
        default=("table_wise",), min_length=1
    )
    """Sharding types to choose from, for all tables. (Grid and table-row-wise are for a plan file, on GPUs.)"""
    constraints: tuple[Constraint, ...] = ()
    """Further pins, bans and co-locations, by table."""
    plan: Path | None = None
    """A plan that `torchrec-xd plan --out` wrote; Default: made when the run starts."""
    communication: CommunicationSettings = CommunicationSettings()
    """In which precision ranks exchange embeddings and gradients."""

    @model_validator(mode="after")
    def _check(self) -> ShardingSettings:
        for constraint in self.constraints:
            for kind in constraint.sharding_types or ():
                if kind not in self.types:
                    raise ValueError(
                        f"constraint on {', '.join(constraint.tables)}: {kind} is not among types "
                        f"({', '.join(self.types)}); {self._remedy(kind)}"
                    )
        return self

    def _remedy(self, kind: str) -> str:
        valid = get_args(get_args(type(self).model_fields["types"].annotation)[0])
        if kind in valid:
            return "add it there, or ask for one of these"
        return f"it is for GPUs and comes from a plan file (sharding.plan); types may be: {', '.join(valid)}"

    @property
    def all_constraints(self) -> tuple[Constraint, ...]:
        """All of these as constraints; what is sharded updates inside the backward pass, what is replicated cannot."""
        kernels = ("fused", "dense") if "data_parallel" in self.types else ("fused",)
        return (Constraint(tables=("*",), sharding_types=self.types, kernels=kernels), *self.constraints)


class RunPlan(NamedTuple):
    """Where a run's tables lie."""

    plan: Plan
    """As it is kept, with its estimates."""
    sharding_plan: ShardingPlan
    """As torchrec takes it."""


@dataclass(frozen=True)
class Priced:
    """Tables, every option's price, and the groups that are placed."""

    tables: list[TableRef]
    options: list[list[Option]]
    groups: list[TableGroup]
    cluster: Cluster
    settings: PlannerSettings


@dataclass(frozen=True)
class Planning:
    """A plan, what it was chosen from, and how long that took."""

    plan: Plan
    priced: Priced
    chosen: list[Option]
    """Option of each table."""
    ranks: list[Ints]
    """Ranks of each table's shards."""
    seconds: float


class InfeasibleError(UserError):
    """No plan keeps the limits and constraints."""

    def __init__(self, message: str, priced: Priced, why: NotFound, seconds: float) -> None:
        super().__init__(message)
        self.priced = priced
        self.why = why
        self.seconds = seconds


def price_module(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> Priced:
    """The module's tables with every option's price.

    Raises:
        UserError: no tables, or constraints that match nothing or leave nothing.
    """
    tables = module_tables(module, sharders)
    if not tables:
        names = ", ".join(sharder.module_type.__name__ for sharder in sharders)
        raise UserError(f"{type(module).__name__} holds no table that the sharders know ({names})")
    return price(tables, cluster, settings)


def price(tables: list[TableRef], cluster: Cluster, settings: PlannerSettings) -> Priced:
    """The same for tables that were found before."""
    check_constraints(settings.constraints, [table.name for table in tables], cluster.world_size)
    options = price_tables(tables, cluster, settings.batch_size, settings.pooling, settings.constraints)
    return Priced(tables, options, build_groups(tables, options, settings.constraints), cluster, settings)


def make_plan(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> Planning:
    """Plan `module` for `cluster`; no process group, no weights needed.

    Raises:
        InfeasibleError: no plan keeps the limits; the error says what does not fit, and by how many bytes.
        UserError: constraints that match nothing or leave nothing.
    """
    began = time.perf_counter()
    priced = price_module(module, sharders, cluster, settings)
    found = search(priced.groups, cluster, settings.effort)
    if isinstance(found, NotFound):
        raise InfeasibleError(_reason(priced, found), priced, found, time.perf_counter() - began)
    chosen: list[Option] = [priced.options[0][0]] * len(priced.tables)
    ranks: list[Ints] = [np.empty(0, dtype=np.int64)] * len(priced.tables)
    for group, placement in zip(priced.groups, found.placements, strict=True):
        for table, option in zip(group.tables, placement.candidate.options, strict=True):
            chosen[table], ranks[table] = option, placement.ranks
    plan = _plan(priced, chosen, ranks, found)
    return Planning(plan, priced, chosen, ranks, time.perf_counter() - began)


def plan_module(
    module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], cluster: Cluster, settings: PlannerSettings
) -> ShardingPlan:
    """What `EmbeddingShardingPlanner.plan` gives, for DistributedModelParallel. Every rank finds the same plan.

    Raises:
        InfeasibleError: no plan keeps the limits.
        UserError: constraints that match nothing or leave nothing.
    """
    planning = make_plan(module, sharders, cluster, settings)
    return planning.plan.sharding_plan(planning.priced.tables)


def plan_run(
    module: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    cluster: Cluster,
    settings: ShardingSettings,
    batch_size: int,
    pooling: Mapping[str, float],
) -> RunPlan:
    """The plan of a run: from its file, or made now with fused kernels.

    Raises:
        InfeasibleError: no plan keeps the limits.
        UserError: the file's plan is not for this model and cluster, constraints match nothing or leave nothing, or
            some table cannot be exchanged as `communication` asks.
    """
    if settings.plan is not None:
        plan = read_plan(settings.plan)
        loaded = load_plan(settings.plan, module, cluster.world_size, sharders, cluster.device)
    else:
        planner = PlannerSettings(batch_size=batch_size, pooling=dict(pooling), constraints=settings.all_constraints)
        planning = make_plan(module, sharders, cluster, planner)
        plan, loaded = planning.plan, planning.plan.sharding_plan(planning.priced.tables)
    settings.communication.check(module, loaded)
    return RunPlan(plan, loaded)


def rank_usage(options: Sequence[Option], ranks: Sequence[Ints], world_size: int) -> dict[str, Floats]:
    """What each rank does and holds under a plan: `compute` and `comms` in ms, `hbm` and `ddr` in bytes, each `[W]`."""
    usage = {key: np.zeros(world_size) for key in ("compute", "comms", "hbm", "ddr")}
    for option, shards in zip(options, ranks, strict=True):
        at = 0
        for run in option.runs:
            where = shards[at : at + run.count]
            comms = run.perf.fwd_comms + run.perf.bwd_comms
            # Not +=: several shards of one table may share a rank in a foreign plan.
            np.add.at(usage["compute"], where, run.perf.total - comms)
            np.add.at(usage["comms"], where, comms)
            np.add.at(usage["hbm"], where, run.storage.hbm)
            np.add.at(usage["ddr"], where, run.storage.ddr)
            at += run.count
    return usage


def _plan(priced: Priced, chosen: Sequence[Option], ranks: Sequence[Ints], found: Found) -> Plan:
    world_size = priced.cluster.world_size
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
            ranks="all" if option.sharding_type in ("row_wise", "data_parallel") else tuple(where.tolist()),
            ms=option.total_ms,
            hbm=sum(run.count * run.storage.hbm for run in option.runs),
            ddr=sum(run.count * run.storage.ddr for run in option.runs),
        )
        for table, option, where in zip(priced.tables, chosen, ranks, strict=True)
    )
    slowest = float((usage["compute"] + usage["comms"]).max())
    return Plan(
        cluster=priced.cluster,
        batch_size=priced.settings.batch_size,
        slowest_rank_ms=slowest,
        lower_bound_ms=min(found.lower_bound_ms, slowest),
        tables=tables,
        rank_compute_ms=tuple(usage["compute"].tolist()),
        rank_comms_ms=tuple(usage["comms"].tolist()),
        rank_hbm=tuple(int(value) for value in usage["hbm"]),
        rank_ddr=tuple(int(value) for value in usage["ddr"]),
    )


def _reason(priced: Priced, why: NotFound) -> str:
    cluster = priced.cluster
    lines = [f"no plan fits {len(priced.tables)} tables into {cluster.world_size} ranks"]
    limits = dict(zip(("hbm", "ddr"), (cluster.hbm_bytes, cluster.ddr_bytes), strict=True))
    for group in why.hopeless:
        for table in priced.groups[group].tables:
            option, run = min(
                ((o, r) for o in priced.options[table] for r in o.runs[:1]),
                key=lambda pair: max(_excess(pair[1].storage, limits).values()),
            )
            over = {kind: bytes_ for kind, bytes_ in _excess(run.storage, limits).items() if bytes_ > 0}
            short = " and ".join(f"{bytes_:,} bytes of {kind.upper()}" for kind, bytes_ in over.items())
            lines.append(
                f"table '{priced.tables[table].fqn}': its leanest shard ({option.label}) is {short} short on any rank"
            )
    for kind, missing in zip(limits, why.shortage_M, strict=True):
        if missing >= 1:
            lines.append(f"all ranks together are at least {int(missing):,} bytes of {kind.upper()} short")
    unplaced = [priced.tables[t].fqn for group in why.unplaced for t in priced.groups[group].tables]
    if unplaced:
        lines.append(f"memory suffices in all, but is too fragmented for: {', '.join(unplaced)}")
    return "\n".join(lines)


def _excess(storage: object, limits: dict[str, int]) -> dict[str, int]:
    return {kind: int(getattr(storage, kind)) - limit for kind, limit in limits.items()}
