"""Why a table is sharded as it is, and what would make an infeasible plan fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import PlannerSettings, Planning, Priced, price
from torchrec_xd.planner.costs.options import Option, TableRef
from torchrec_xd.planner.inputs.cluster import GIB, Cluster
from torchrec_xd.planner.search.candidates import Ranks, build_groups
from torchrec_xd.planner.search.search import Found, search
from torchrec_xd.private_names import copy_announced_optimizer

MOST_TIMES = 32
"""How many times the ranks are tried at most when a plan does not fit."""


@dataclass(frozen=True)
class OptionVerdict:
    """One option of a table and what became of it."""

    option: Option
    chosen: bool
    slowest_rank_ms: float | None
    """Slowest rank of the plan with this option instead, the other tables staying; None where it does not fit."""
    why: str


def explain(planning: Planning, name: str) -> list[OptionVerdict]:
    """Every option of a table, best first, with its price and why it lost.

    Raises:
        UserError: no such table, or one that several collections have.
    """
    index = _index_of(planning.priced.tables, name)
    priced, cluster = planning.priced, planning.priced.cluster
    ranks = Ranks(cluster)
    for group in build_groups(priced.tables, [[option] for option in planning.chosen], ()):
        if group.tables != (index,):
            ranks.put(group.candidates[0], planning.ranks[group.tables[0]])
    constraints = tuple(c for c in priced.settings.constraints if not c.together)
    candidates = build_groups([priced.tables[index]], [priced.options[index]], constraints)[0].candidates
    verdicts = []
    for candidate in candidates:
        option = candidate.options[0]
        spot = ranks.best(candidate)
        slowest = None if spot is None else max(spot[1], float(ranks.load_W.max()))
        if option is planning.chosen[index]:
            slowest = planning.plan.slowest_rank_ms
        why = _why(option, planning, index, slowest, ranks)
        verdicts.append(OptionVerdict(option, option is planning.chosen[index], slowest, why))
    return sorted(
        verdicts, key=lambda v: (not v.chosen, v.slowest_rank_ms is None, v.slowest_rank_ms or 0, v.option.total_ms)
    )


def _index_of(tables: list[TableRef], name: str) -> int:
    found = [i for i, table in enumerate(tables) if name in (table.name, table.fqn)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several tables are called '{name}': {', '.join(tables[i].fqn for i in found)}; give the path")
    raise UserError(f"no table '{name}'; tables: {', '.join(table.name for table in tables[:30])}")


def _why(option: Option, planning: Planning, index: int, slowest: float | None, ranks: Ranks) -> str:
    chosen, now = planning.chosen[index], planning.plan.slowest_rank_ms
    if option is chosen:
        return "chosen"
    if slowest is None:
        return _no_room(option, ranks)
    if slowest > now * (1 + 1e-9):
        return f"slowest rank {slowest:.3f} ms, {slowest / now - 1:+.1%}"
    extra = option.total_ms - chosen.total_ms
    if extra > 0:
        return f"no faster, and {extra:.3f} ms more work in all"
    return "as good"


def _no_room(option: Option, ranks: Ranks) -> str:
    for kind, limit, used in zip(("hbm", "ddr"), ranks.limit_M, ranks.memory_MW, strict=True):
        need = max(getattr(run.storage, kind) for run in option.runs)
        able = int((used + need <= limit).sum())
        if need > limit:
            return f"a shard needs {need / GIB:.2f} GiB of {kind.upper()}, a rank has {limit / GIB:.2f}"
        if able < option.num_shards:
            return f"{need / GIB:.2f} GiB of {kind.upper()} needed on {option.num_shards} ranks, left on {able}"
    return "not enough ranks of one node have room for its shards"


def remedies(priced: Priced) -> list[str]:
    """The nearest single changes that make an infeasible plan fit, each tried; empty where none of them does."""
    ranks = _ranks_needed(priced)
    found = [] if ranks is None else [f"{ranks} ranks instead of {priced.cluster.world_size}"]
    return found + [text for text, attempt in _other_changes(priced) if _fits(attempt)]


def _fits(priced: Priced) -> bool:
    return isinstance(search(priced.groups, priced.cluster, effort=1), Found)


def _again(priced: Priced, cluster: Cluster | None = None, settings: PlannerSettings | None = None) -> Priced:
    return price(priced.tables, cluster or priced.cluster, settings or priced.settings)


def _ranks_needed(priced: Priced) -> int | None:
    """The least number of ranks that suffices, found by doubling and halving; None beyond `MOST_TIMES` as many."""
    cluster = priced.cluster

    def fits(size: int) -> bool:
        return _fits(_again(priced, cluster.with_changes(world_size=size)))

    low = cluster.world_size
    high = _whole_nodes(2 * low, cluster)
    while not fits(high):
        low, high = high, _whole_nodes(2 * high, cluster)
        if high > MOST_TIMES * cluster.world_size:
            return None
    while high - low > max(1, high // 16):
        middle = _whole_nodes((low + high) // 2, cluster)
        if middle == high:
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _whole_nodes(ranks: int, cluster: Cluster) -> int:
    """`ranks`, rounded up to whole nodes where they take more than one."""
    size = cluster.ranks_per_node
    return ranks if ranks <= size else math.ceil(ranks / size) * size


def _other_changes(priced: Priced) -> Iterator[tuple[str, Priced]]:
    cluster, settings = priced.cluster, priced.settings
    if any(table.dtype == "float32" for table in priced.tables):
        halved = [_halved(table) for table in priced.tables]
        yield "bf16 weights", price(halved, cluster, settings)
    if cluster.reservation > 0.05:
        lower = cluster.with_changes(reservation=0.05)
        yield f"a reservation of 5 % instead of {cluster.reservation:.0%}", _again(priced, lower)
    if settings.batch_size > 1:
        smaller = settings.model_copy(update={"batch_size": max(1, settings.batch_size // 2)})
        yield f"batches of {smaller.batch_size} instead of {settings.batch_size}", _again(priced, settings=smaller)
    for constraint in settings.constraints:
        rest = tuple(c for c in settings.constraints if c is not constraint)
        without = _again(priced, settings=settings.model_copy(update={"constraints": rest}))
        yield f"lift the constraint on {', '.join(constraint.tables)}{_freed(priced, without)}", without


def _freed(before: Priced, after: Priced) -> str:
    """The sharding types that lifting a constraint allows."""
    types = {
        option.sharding_type
        for old, new in zip(before.options, after.options, strict=True)
        for option in new
        if option.sharding_type not in {o.sharding_type for o in old}
    }
    return f" (allows {', '.join(sorted(types))})" if types else ""


def _halved(table: TableRef) -> TableRef:
    if table.dtype != "float32":
        return table
    parameter = nn.Parameter(torch.empty(table.rows, table.dim, dtype=torch.bfloat16, device="meta"))
    copy_announced_optimizer(table.parameter, parameter)
    return replace(table, parameter=parameter, dtype="bfloat16")
