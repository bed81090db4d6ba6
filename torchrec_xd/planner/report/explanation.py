"""Why a table is sharded as it is: its other options, and what the plan would be with them."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import Planning
from torchrec_xd.planner.costs.options import Option
from torchrec_xd.planner.inputs.cluster import GIB
from torchrec_xd.planner.inputs.module_tables import TableRef
from torchrec_xd.planner.search.candidates import RankState, build_groups


@dataclass(frozen=True)
class OptionVerdict:
    """One option of a table, and why it was chosen or not."""

    option: Option
    chosen: bool
    slowest_rank_ms: float | None
    """Slowest rank of the plan with this option, all other tables unchanged; None where it does not fit."""
    why: str


def explain(planning: Planning, name: str) -> list[OptionVerdict]:
    """Every option of a table, best first, with the reason why it was chosen or not.

    Raises:
        UserError: there is no such table, or several collections have one of this name.
    """
    index = _index_of(planning.problem.tables, name)
    problem, cluster = planning.problem, planning.problem.cluster
    ranks = RankState(cluster)
    for group in build_groups(problem.tables, [[option] for option in planning.chosen], ()):
        if group.tables != (index,):
            ranks.put(group.candidates[0], planning.ranks[group.tables[0]])
    constraints = tuple(c for c in problem.settings.constraints if not c.together)
    candidates = build_groups([problem.tables[index]], [problem.options[index]], constraints)[0].candidates
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
        raise UserError(
            f"several tables are called '{name}': {', '.join(tables[i].fqn for i in found)}; give one of these paths"
        )
    raise UserError(f"no table '{name}'; tables: {', '.join(table.name for table in tables[:30])}")


def _why(option: Option, planning: Planning, index: int, slowest: float | None, ranks: RankState) -> str:
    chosen, now = planning.chosen[index], planning.plan.slowest_rank_ms
    if option is chosen:
        return "chosen"
    if slowest is None:
        return _no_room(option, ranks)
    if slowest > now * (1 + 1e-9):
        return f"slowest rank {slowest:.3f} ms, {slowest / now - 1:+.1%}"
    extra = option.total_ms - chosen.total_ms
    if extra > 0:
        return f"no faster, and {extra:.3f} ms more total time"
    return "equally good"


def _no_room(option: Option, ranks: RankState) -> str:
    for kind, limit, used in zip(("hbm", "ddr"), ranks.limit_M, ranks.memory_MW, strict=True):
        need = max(getattr(run.storage, kind) for run in option.runs)
        able = int((used + need <= limit).sum())
        if need > limit:
            return f"a shard needs {need / GIB:.2f} GiB of {kind.upper()}, a rank has {limit / GIB:.2f} GiB"
        if able < option.num_shards:
            return f"needs {need / GIB:.2f} GiB of {kind.upper()} on {option.num_shards} ranks, free on {able}"
    return "no node has enough ranks with free memory for its shards"
