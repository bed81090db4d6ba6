"""The lookups of a plan, measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import Planning
from torchrec_xd.planner.costs.measurement import SPARSE_TYPES, run_lookup
from torchrec_xd.planner.inputs.cluster import LookupWork
from torchrec_xd.table_types import TableOptimizer


@dataclass(frozen=True)
class RankLookups:
    """Estimated and measured lookups of one rank."""

    rank: int
    estimated_ms: float
    measured_ms: float
    estimated_bytes: int
    measured_bytes: int


def measure_ranks(planning: Planning, optimizer: TableOptimizer) -> list[RankLookups]:
    """Run the lookups of every rank on this machine, one rank after the other, without the exchange.

    Raises:
        UserError: this machine does not have the plan's device, or FBGEMM cannot run its weight types or optimizer.
    """
    plan = planning.plan
    device = plan.cluster.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--measure-lookups runs lookups on this machine, which has no CUDA device; choose a cpu cluster"
        )
    offloaded = [table.fqn for table in plan.tables if table.kernel.startswith("fused_uvm")]
    if offloaded:
        raise UserError(
            "--measure-lookups measures lookups in HBM, but the plan has tables in host memory: "
            f"{', '.join(offloaded[:20])}; leave the option out, or forbid fused_uvm_caching and fused_uvm for them"
        )
    measured = []
    for rank in range(plan.cluster.world_size):
        shards = _shards_of(planning, rank)
        measured_ms, held = 0.0, 0
        for dtype in sorted({dtype for dtype, _ in shards}):
            if dtype not in SPARSE_TYPES:
                measurable = ", ".join(SPARSE_TYPES)
                raise UserError(f"--measure-lookups measures {measurable} weights, but the plan has {dtype} weights")
            works = [work for kind, work in shards if kind == dtype]
            forward, backward, size = run_lookup(works, dtype, device, optimizer)
            measured_ms, held = measured_ms + forward + backward, held + size
        estimated = plan.rank_hbm if device == "cuda" else plan.rank_ddr
        measured.append(RankLookups(rank, plan.rank_compute_ms[rank], measured_ms, estimated[rank], held))
    return measured


def _shards_of(planning: Planning, rank: int) -> list[tuple[str, LookupWork]]:
    """Weight type and lookups of each shard of a rank in one step."""
    problem, cluster = planning.problem, planning.problem.cluster
    names = {"float32": "fp32", "float16": "fp16"}
    found = []
    for table, option, ranks in zip(problem.tables, planning.chosen, planning.ranks, strict=True):
        runs = [run for run in option.runs for _ in range(run.count)]
        for run, where in zip(runs, ranks.tolist(), strict=True):
            if where == rank and run.rows:
                ids = sum(problem.settings.pooling.get(f, 1.0) for f in table.features)
                parts = {"row_wise": cluster.world_size, "table_row_wise": cluster.node_size}
                batch = problem.settings.batch_size
                everyone = batch if option.sharding_type == "data_parallel" else batch * cluster.world_size
                lookups = everyone * ids / parts.get(option.sharding_type, 1)
                work = LookupWork(run.rows, run.dim, table.parameter.element_size(), lookups, everyone)
                found.append((names.get(table.dtype, table.dtype), work))
    return found
