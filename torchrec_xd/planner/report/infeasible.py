"""Why no plan fits, and which single changes would make one fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.module_tables import TableRef
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.search.problem import PlanningProblem, table_problem
from torchrec_xd.planner.search.search import Found, NotFound, search
from torchrec_xd.private_names import copy_announced_optimizer

MOST_TIMES = 32
"""Up to how many times as many ranks are tried."""


class InfeasibleError(UserError):
    """No plan keeps the memory limits and the constraints."""

    def __init__(self, message: str, problem: PlanningProblem, why: NotFound, seconds: float) -> None:
        super().__init__(message)
        self.problem = problem
        self.why = why
        self.seconds = seconds


def infeasible_error(problem: PlanningProblem, why: NotFound, seconds: float) -> InfeasibleError:
    """The error that says what does not fit, and by how many bytes."""
    return InfeasibleError(_reason(problem, why), problem, why, seconds)


def _reason(problem: PlanningProblem, why: NotFound) -> str:
    cluster = problem.cluster
    lines = [f"no plan fits {len(problem.tables)} tables into {cluster.world_size} ranks"]
    limits = dict(zip(("hbm", "ddr"), (cluster.hbm_bytes, cluster.ddr_bytes), strict=True))
    for group in why.oversized:
        for table in problem.groups[group].tables:
            option, run = min(
                ((o, r) for o in problem.options[table] for r in o.runs[:1]),
                key=lambda pair: max(_excess(pair[1].storage, limits).values()),
            )
            over = {kind: bytes_ for kind, bytes_ in _excess(run.storage, limits).items() if bytes_ > 0}
            short = " and ".join(f"{bytes_:,} bytes of {kind.upper()}" for kind, bytes_ in over.items())
            name = problem.tables[table].fqn
            lines.append(f"table '{name}': its smallest shard ({option.label}) exceeds the limit of a rank by {short}")
    for kind, missing in zip(limits, why.shortage_M, strict=True):
        if missing >= 1:
            lines.append(f"all ranks together lack at least {int(missing):,} bytes of {kind.upper()}")
    unplaced = [problem.tables[t].fqn for group in why.unplaced for t in problem.groups[group].tables]
    if unplaced:
        lines.append(f"total memory is sufficient, but too fragmented for: {', '.join(unplaced)}")
    return "\n".join(lines)


def _excess(storage: object, limits: dict[str, int]) -> dict[str, int]:
    return {kind: int(getattr(storage, kind)) - limit for kind, limit in limits.items()}


def remedies(problem: PlanningProblem) -> list[str]:
    """Single changes that make an infeasible problem feasible, each tried by planning again; empty if none does."""
    ranks = _ranks_needed(problem)
    found = [] if ranks is None else [f"{ranks} ranks instead of {problem.cluster.world_size}"]
    return found + [text for text, attempt in _other_changes(problem) if _fits(attempt)]


def _fits(problem: PlanningProblem) -> bool:
    return isinstance(search(problem.groups, problem.cluster, effort=1), Found)


def _again(
    problem: PlanningProblem, cluster: Cluster | None = None, settings: PlannerSettings | None = None
) -> PlanningProblem:
    return table_problem(problem.tables, cluster or problem.cluster, settings or problem.settings)


def _ranks_needed(problem: PlanningProblem) -> int | None:
    """Least sufficient number of ranks, rounded up by at most a sixteenth; None beyond `MOST_TIMES` as many."""
    cluster = problem.cluster

    def fits(size: int) -> bool:
        return _fits(_again(problem, cluster.with_changes(world_size=size)))

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
    """`ranks`, rounded up to whole nodes if they need more than one."""
    size = cluster.ranks_per_node
    return ranks if ranks <= size else math.ceil(ranks / size) * size


def _other_changes(problem: PlanningProblem) -> Iterator[tuple[str, PlanningProblem]]:
    cluster, settings = problem.cluster, problem.settings
    if any(table.dtype == "float32" for table in problem.tables):
        halved = [_halved(table) for table in problem.tables]
        # Not bf16: runs do not store it.
        yield "fp16 weights", table_problem(halved, cluster, settings)
    if cluster.reservation > 0.05:
        lower = cluster.with_changes(reservation=0.05)
        yield f"a reservation of 5 % instead of {cluster.reservation:.0%}", _again(problem, lower)
    if settings.batch_size > 1:
        smaller = settings.model_copy(update={"batch_size": max(1, settings.batch_size // 2)})
        yield f"batches of {smaller.batch_size} instead of {settings.batch_size}", _again(problem, settings=smaller)
    for constraint in settings.constraints:
        rest = tuple(c for c in settings.constraints if c is not constraint)
        without = _again(problem, settings=settings.model_copy(update={"constraints": rest}))
        yield f"the constraint on {', '.join(constraint.tables)} removed{_freed(problem, without)}", without


def _freed(before: PlanningProblem, after: PlanningProblem) -> str:
    """The sharding types that only the problem without the constraint allows."""
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
    parameter = nn.Parameter(torch.empty(table.rows, table.dim, dtype=torch.float16, device="meta"))
    copy_announced_optimizer(table.parameter, parameter)
    return replace(table, parameter=parameter, dtype="float16")
