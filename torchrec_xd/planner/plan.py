"""A sharding plan as a file: written by the planner, loaded by training, compared with others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from torchrec_xd.atomic_write import write_text
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.module_tables import TableRef, module_tables
from torchrec_xd.settings import Settings, validate


class PlannedTable(Settings):
    """How one table is sharded, and the ranks of its shards."""

    path: str
    """Path of the collection inside the module."""
    name: str
    rows: PositiveInt
    dim: PositiveInt
    dtype: str
    """Type of the weights, for example `float32`."""
    sharding_type: str
    kernel: str
    column_dim: PositiveInt | None
    """Minimum width of column shards; None for other types."""
    cache_load_factor: float | None = Field(default=None, gt=0, lt=1)
    """Share of the rows that the cache in HBM holds (`fused_uvm_caching`). None: no cache, or torchrec's 0.2."""
    ranks: tuple[NonNegativeInt, ...] | Literal["all"]
    """Rank of each shard; `all`: all ranks in order."""
    ms: NonNegativeFloat
    """Estimated time of all shards in one step, summed."""
    hbm: NonNegativeInt
    """Bytes of GPU memory, all shards."""
    ddr: NonNegativeInt
    """Bytes of host memory, all shards."""

    @property
    def fqn(self) -> str:
        """Path and name."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def kernel_text(self) -> str:
        """Kernel, with the load factor of its cache: `fused_uvm_caching[0.2]`."""
        return f"{self.kernel}[{self.cache_load_factor:g}]" if self.cache_load_factor else self.kernel


class Plan(Settings):
    """A sharding plan with its estimated costs and a lower bound."""

    format: Literal["torchrec-xd sharding plan 1"] = "torchrec-xd sharding plan 1"
    """Format of the file."""
    cluster: Cluster
    """The cluster that the plan is for."""
    batch_size: PositiveInt
    """Samples per rank and step."""
    slowest_rank_ms: NonNegativeFloat
    """Estimated time of the slowest rank's embeddings in one step."""
    lower_bound_ms: NonNegativeFloat
    """Lower bound on the slowest rank of any plan, under the same costs."""
    tables: tuple[PlannedTable, ...]
    """All tables of the model."""
    rank_compute_ms: tuple[float, ...]
    """Time of lookups and updates, by rank."""
    rank_comms_ms: tuple[float, ...]
    """Time of the exchange of embeddings and gradients, by rank."""
    rank_hbm: tuple[int, ...]
    """Bytes of GPU memory, by rank."""
    rank_ddr: tuple[int, ...]
    """Bytes of host memory, by rank."""

    @property
    def gap(self) -> float:
        """Slowest rank over lower bound, minus one: the plan is at most this far from the best one."""
        return self.slowest_rank_ms / self.lower_bound_ms - 1 if self.lower_bound_ms else 0.0

    @property
    def rank_ms(self) -> list[float]:
        """Time of each rank."""
        return [compute + comms for compute, comms in zip(self.rank_compute_ms, self.rank_comms_ms, strict=True)]

    def save(self, path: Path) -> None:
        """Write the plan as JSON, one table per line."""
        content = self.model_dump(mode="json")
        tables = content.pop("tables")
        head = json.dumps(content, indent=1)
        lines = ",\n  ".join(json.dumps(table) for table in tables)
        write_text(path, f'{head[:-2]},\n "tables": [\n  {lines}\n ]\n}}\n')

    def sharding_plan(self, tables: Sequence[TableRef]) -> ShardingPlan:
        """The plan in torchrec's form.

        Raises:
            UserError: the tables are not those of the plan.
        """
        _check_same(self.tables, tables)
        planned = {table.fqn: table for table in self.tables}
        return to_sharding_plan([self._option(planned[t.fqn], t) for t in tables], self.cluster.topology())

    def _option(self, planned: PlannedTable, table: TableRef) -> ShardingOption:
        sizes, offsets = calculate_shard_sizes_and_offsets(
            table.parameter,
            self.cluster.world_size,
            self.cluster.node_size,
            planned.sharding_type,
            col_wise_shard_dim=planned.column_dim,
        )
        ranks = range(self.cluster.world_size) if planned.ranks == "all" else planned.ranks
        if len(ranks) != len(sizes) or any(rank >= self.cluster.world_size for rank in ranks):
            raise UserError(
                f"table '{planned.fqn}': {planned.sharding_type} on {self.cluster.world_size} ranks makes "
                f"{len(sizes)} shards, but the plan has ranks for {len(ranks)}: {list(ranks)}; plan again"
            )
        load_factor = planned.cache_load_factor
        return ShardingOption(
            name=table.name,
            tensor=table.parameter,
            module=(table.path, table.module),
            input_lengths=[],
            batch_size=self.batch_size,
            sharding_type=planned.sharding_type,
            partition_by=get_partition_by_type(planned.sharding_type),
            compute_kernel=planned.kernel,
            shards=[Shard(size, offset, rank=rank) for size, offset, rank in zip(sizes, offsets, ranks, strict=True)],
            is_pooled=True,
            # Kernels that keep what was fetched ahead of its use: what `pipelined_steps` relies on.
            cache_params=CacheParams(load_factor=load_factor, prefetch_pipeline=True) if load_factor else None,
        )


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UserError: the file is missing, not JSON, or not a plan.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a plan as `torchrec-xd plan make --out` writes it, got {type(content).__name__}"
        )
    return validate(Plan, content, str(path))


def load_plan(
    path: Path,
    module: nn.Module,
    world_size: int,
    sharders: Sequence[ModuleSharder[nn.Module]] | None = None,
    device: str | None = None,
) -> ShardingPlan:
    """Load a plan for a module, to pass to DistributedModelParallel.

    Args:
        path: a file that `Plan.save` wrote.
        module: the module to shard. Its tables must be those of the plan.
        world_size: number of ranks. Must be that of the plan.
        sharders: as passed to DistributedModelParallel. Default: torchrec's own.
        device: `cpu` or `cuda`. Default: not checked.

    Raises:
        UserError: the tables, the world size or the device are not those of the plan, or the device does not support
            a sharding type. Each difference is one line of the message.
    """
    plan = read_plan(path)
    if plan.cluster.world_size != world_size:
        raise UserError(
            f"{path}: planned for {plan.cluster.world_size} ranks, but this run has {world_size}; plan again"
        )
    listed = module_tables(module, sharders or torchrec_sharders())
    if device is not None:
        _check_supported(path, plan.tables, listed, device)
    if device is not None and plan.cluster.device != device:
        raise UserError(f"{path}: planned for '{plan.cluster.device}', but this run uses '{device}'; plan again")
    try:
        return plan.sharding_plan(listed)
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _check_supported(path: Path, planned: Iterable[PlannedTable], tables: Sequence[TableRef], device: str) -> None:
    """Refuse sharding types that the device does not support: grid_shard and table_row_wise on CPUs."""
    sharder_of = {table.fqn: table.sharder for table in tables}
    offered = {fqn: sharder.sharding_types(device) for fqn, sharder in sharder_of.items()}
    faults = [
        f"{path}: table '{table.fqn}' is {table.sharding_type}, which '{device}' does not support "
        f"(it supports {', '.join(offered[table.fqn])}); plan again"
        for table in planned
        if table.fqn in offered and table.sharding_type not in offered[table.fqn]
    ]
    if faults:
        raise UserError("\n".join(faults))


def _check_same(planned: Iterable[PlannedTable], tables: Sequence[TableRef]) -> None:
    plan_of = {table.fqn: table for table in planned}
    model_of = {table.fqn: table for table in tables}
    faults = [f"table '{fqn}' is in the model, not in the plan" for fqn in model_of.keys() - plan_of.keys()]
    faults += [f"table '{fqn}' is in the plan, not in the model" for fqn in plan_of.keys() - model_of.keys()]
    for fqn in plan_of.keys() & model_of.keys():
        for field in ("rows", "dim", "dtype"):
            before, now = getattr(plan_of[fqn], field), getattr(model_of[fqn], field)
            if before != now:
                faults.append(f"table '{fqn}' was planned with {field} {before}, the model has {now}")
    if faults:
        raise UserError("\n".join([*sorted(faults), "the model has changed since it was planned; plan again"]))


def diff_plans(before: Plan, after: Plan) -> list[str]:
    """The differences between two plans, one per line; empty if there are none."""
    lines = []
    for field in ("world_size", "device", "ranks_per_node"):
        old, new = getattr(before.cluster, field), getattr(after.cluster, field)
        if old != new:
            lines.append(f"{field}: {old} -> {new}")
    if before.slowest_rank_ms != after.slowest_rank_ms:
        lines.append(f"slowest rank: {before.slowest_rank_ms:.3f} -> {after.slowest_rank_ms:.3f} ms")
    old_of = {table.fqn: table for table in before.tables}
    new_of = {table.fqn: table for table in after.tables}
    for fqn in sorted(old_of.keys() | new_of.keys()):
        if fqn not in new_of:
            lines.append(f"{fqn}: removed")
        elif fqn not in old_of:
            lines.append(f"{fqn}: added, {new_of[fqn].sharding_type}/{new_of[fqn].kernel_text} on {new_of[fqn].ranks}")
        else:
            changes = _changes(old_of[fqn], new_of[fqn])
            if changes:
                lines.append(f"{fqn}: {', '.join(changes)}")
    return lines


def _changes(old: PlannedTable, new: PlannedTable) -> list[str]:
    fields = ("rows", "dim", "dtype", "sharding_type", "kernel", "cache_load_factor", "column_dim", "ranks")
    return [
        f"{field} {getattr(old, field)} -> {getattr(new, field)}"
        for field in fields
        if getattr(old, field) != getattr(new, field)
    ]
