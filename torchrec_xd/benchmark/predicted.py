"""`predicted`: the planner's estimate of a whole step next to real steps on CPU ranks of this machine.

The profile is measured first, on shapes of its own: nothing is fitted to the steps that it is compared with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from torchrec_xd.benchmark.measure import BatchSize, Json, Repeats, Result, RowsPerTable, Spread
from torchrec_xd.benchmark.scale import run_step
from torchrec_xd.benchmark.step import Dtype, known
from torchrec_xd.benchmark.workbench import synthetic_run
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.planner import Cluster, load_cluster, make_plan
from torchrec_xd.planner.costs.rates import measured_cluster
from torchrec_xd.planner.step.counting import count_dense, longest_phase, meta_batch
from torchrec_xd.planner.step.estimate import StepEstimate, default_precision, estimate_step
from torchrec_xd.shipped import CLUSTERS
from torchrec_xd.training.workload import workload

RANKS = (1, 2, 4)
"""Processes, of one thread each."""
KINDS = {
    "lookups": ("tables: lookup", "tables: backward and update"),
    "dense and launches": ("GEMM", "copies and casts", "element-wise and rest", "dense optimizer"),
}
"""Parts of an estimate, and what a `step` calls the same. Exchange is waited for: no operator's time has it."""


def predicted(
    models: Annotated[str, typer.Option(help="Models to measure, separated by commas.")] = "mmoe,mkt_pretrain",
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 2048,
    dtype: Dtype = "fp16",
    profile: Annotated[
        Path | None, typer.Option(help="Profile that `plan calibrate` wrote here. Default: measured first.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all sizes are run, in turns.")] = 3,
    repeats: Repeats = 3,
    out: Json = None,
) -> None:
    """Predicted and measured ms of a step on 1, 2 and 4 processes, and their ratio."""
    names = models.split(",")
    for name in names:
        known(name)
    torch.set_num_threads(1)
    cluster = _profile(profile)
    result = Result("predicted", {"batch": batch_size, "rows per table": rows_per_table, "tables": dtype})
    result.more = {"cluster": cluster.model_dump(mode="json"), "cores": os.cpu_count()}
    points = [(name, ranks) for name in names for ranks in RANKS]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {point: [] for point in points}
    for turn in range(rounds):
        for name, ranks in points if turn % 2 == 0 else reversed(points):
            point = {"ranks": ranks, "threads": 1, "batch": batch_size, "rows": rows_per_table}
            found[name, ranks].append(run_step(point, name, "fp32", dtype, "--repeats", str(repeats)))
    for name in names:
        with synthetic_run(name, rows_per_table, batch_size, "fp32", dtype) as config:
            for ranks in RANKS:
                result.rows += compared(name, ranks, estimate(config, cluster, ranks), found[name, ranks])
    result.report(out)


def _profile(path: Path | None) -> Cluster:
    """A profile of this machine: read, or measured now.

    Raises:
        UserError: the profile is of GPUs.
    """
    cluster = load_cluster("cpu", CLUSTERS) if path is None else load_cluster(str(path), CLUSTERS)
    if cluster.device != "cpu":
        raise UserError(f"--profile {path}: a profile of GPUs; this measures CPU ranks: give one of `--cluster cpu`")
    return measured_cluster(cluster, "rowwise_adagrad") if path is None else cluster


def estimate(config: RunConfig, cluster: Cluster, ranks: int) -> StepEstimate:
    """The step of a run on processes of one machine, with ids per row as its files have them."""
    work = workload(config, measure_pooling=True)
    here = cluster.with_changes(world_size=ranks, ranks_per_node=ranks)
    planning = make_plan(work.module, work.sharders, here, work.settings)
    schema, loader = config.schema_in_use, config.loader
    shares, _ = longest_phase(schema, loader.mixing, loader.curriculum, config.trainer.epochs)
    batch = meta_batch(schema, work.settings.batch_size, work.settings.pooling, shares)
    return estimate_step(planning.plan, count_dense(work.module, batch), default_precision(here, "fp32"))


def compared(model: str, ranks: int, step: StepEstimate, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole step, then the parts that a `step` measures: predicted, measured, and predicted over measured.

    Args:
        model: its name.
        ranks: processes.
        step: the estimate.
        found: what `step` found, round by round.
    """
    parts = {
        "whole step": step.step_ms,
        "lookups": step.lookups_ms,
        "dense and launches": step.dense_ms + step.launches_ms,
    }
    measured = {"whole step": [ms for content in found for ms in _whole(content)]}
    measured |= {part: [_ms(content, kinds) for content in found] for part, kinds in KINDS.items()}
    lines: list[dict[str, Any]] = [
        {
            "what": f"{model} on {ranks}: {part}",
            "predicted ms": ms,
            "measured ms": Spread(tuple(measured[part])),
            "ratio": Spread(tuple(ms / took for took in measured[part])),
        }
        for part, ms in parts.items()
    ]
    waited = {"exchange": step.exchange_ms, "all-reduce": step.all_reduce_ms, "ids": step.input_ms}
    return lines + [{"what": f"{model} on {ranks}: {part}", "predicted ms": ms} for part, ms in waited.items() if ms]


def _whole(content: dict[str, Any]) -> list[float]:
    """Every measurement of the whole step."""
    (line,) = (line for line in content["rows"] if line["what"] == "whole step")
    values: list[float] = line["ms"]["values"]
    return values


def _ms(content: dict[str, Any], kinds: tuple[str, ...]) -> float:
    """Milliseconds of some kinds of operators, summed."""
    lines = {line["what"].strip(): line["ms"] for line in content["rows"]}
    return float(sum(lines[kind] for kind in kinds if kind in lines))
