"""`torchrec-xd plan`: how embedding tables are sharded over a cluster."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.cli.local_paths import local_paths
from torchrec_xd.cli.plan_inputs import (
    BatchSize,
    ClusterOption,
    Constraints,
    Ddr,
    Effort,
    Hbm,
    Inter,
    Intra,
    Json,
    MeasurePooling,
    Optimizer,
    Pooling,
    RanksPerNode,
    Reservation,
    Weights,
    WorldSize,
    chosen_cluster,
    quiet_torchrec,
)
from torchrec_xd.cli.plan_scale import scale
from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import screen, show
from torchrec_xd.errors import UserError
from torchrec_xd.table_types import PlannedDtype, TableOptimizer
from torchrec_xd.writable import check_output_file

if TYPE_CHECKING:
    from torchrec_xd.planner import InfeasibleError, Planning
    from torchrec_xd.planner.report.lookups import RankLookups
    from torchrec_xd.planner.report.torchrec_default import DefaultPlan
    from torchrec_xd.training.workload import Workload

app = typer.Typer(help="Plan how embedding tables are sharded over a cluster.", no_args_is_help=True)


@app.command()
@local_paths
def make(
    config: Annotated[Path | None, typer.Argument(help="Run config or schema (YAML) whose tables are planned.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Table list: CSV or YAML.")] = None,
    cluster: ClusterOption = "8xH100",
    world_size: WorldSize = None,
    ranks_per_node: RanksPerNode = None,
    hbm: Hbm = None,
    ddr: Ddr = None,
    intra: Intra = None,
    inter: Inter = None,
    reservation: Reservation = None,
    batch_size: BatchSize = None,
    weights: Weights = None,
    optimizer: Optimizer = None,
    pooling: Pooling = None,
    measure_pooling: MeasurePooling = False,
    measure_lookups: Annotated[
        bool, typer.Option("--measure-lookups", help="Measure the lookups of each rank on this machine.")
    ] = False,
    constraints: Constraints = None,
    effort: Effort = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan (JSON); training loads it.")] = None,
    report: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write the plan as an HTML page.")] = None,
    table: Annotated[str | None, typer.Option("--explain", help="Show why this table is sharded as it is.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare with torchrec's default planner.")] = False,
) -> None:
    """Plan the tables of a run config, a schema or a table list for a cluster. Exit code 2 if no plan fits."""
    with quick_imports():
        from torchrec_xd.planner import InfeasibleError, make_plan
        from torchrec_xd.planner.report.console import lookups_view
        from torchrec_xd.planner.report.lookups import measure_ranks
        from torchrec_xd.planner.report.page import save_plan_page
        from torchrec_xd.planner.report.torchrec_default import default_plan
        from torchrec_xd.training.workload import with_files

    for option, path in {"--out": out, "--json": report, "--html": html}.items():
        if path is not None:
            check_output_file(path, option)
    with quiet_torchrec():
        machine = chosen_cluster(
            cluster,
            world_size=world_size,
            ranks_per_node=ranks_per_node,
            hbm_gib=hbm,
            ddr_gib=ddr,
            intra_node_gib_s=intra,
            inter_node_gib_s=inter,
            reservation=reservation,
        )
        work = _workload(config, tables, weights, optimizer, measure_pooling=measure_pooling)
        settings = with_files(work.settings, pooling, constraints, batch_size=batch_size, effort=effort)
        try:
            planning = make_plan(work.module, work.sharders, machine, settings)
        except InfeasibleError as error:
            _fail(error, report)
        default = default_plan(work.module, work.sharders, machine, settings) if compare else None
        _show(planning, default, table)
        lookups = measure_ranks(planning, optimizer or work.optimizer) if measure_lookups else None
        if lookups is not None:
            screen.print(lookups_view(lookups))
        if out is not None:
            planning.plan.save(out)
        if html is not None:
            save_plan_page(planning.plan, html)
        if report is not None:
            write_json(report, _summary(planning, default, lookups), indent=1)


app.command()(local_paths(scale))


@app.command()
@local_paths
def diff(
    before: Annotated[Path, typer.Argument(help="Plan file.")],
    after: Annotated[Path, typer.Argument(help="Plan file.")],
) -> None:
    """Show the differences between two plans."""
    from torchrec_xd.planner import diff_plans, read_plan

    lines = diff_plans(read_plan(before), read_plan(after))
    show("\n".join(lines) if lines else "the plans are equal")


@app.command()
@local_paths
def check(run: Annotated[Path, typer.Argument(help="Run folder of a finished run.")], report: Json = None) -> None:
    """Show memory and time of a finished run by rank, next to the estimates of its plan."""
    from torchrec_xd.planner import check_run
    from torchrec_xd.planner.report.console import check_view

    if report is not None:
        check_output_file(report, "--json")
    checks = check_run(run)
    screen.print(check_view(checks))
    if report is not None:
        ranks = [
            {**asdict(c), "estimated_ms": c.estimated_ms, "bytes_ratio": c.bytes_ratio, "ms_ratio": c.ms_ratio}
            for c in checks
        ]
        write_json(report, {"run": str(run), "ranks": ranks}, indent=1)


@app.command()
@local_paths
def calibrate(
    out: Annotated[Path, typer.Argument(help="Cluster profile to write.")],
    cluster: Annotated[
        str | None, typer.Option(help="A shipped profile, or a path. Default: this machine's GPUs, or cpu without any.")
    ] = None,
    world_size: WorldSize = None,
    ranks_per_node: RanksPerNode = None,
    optimizer: Annotated[TableOptimizer, typer.Option(help="Of the tables.")] = "rowwise_adagrad",
) -> None:
    """Measure lookups, matrix products, memory and links on this machine, and write them as a cluster profile."""
    import torch
    import yaml

    from torchrec_xd.planner import this_machine
    from torchrec_xd.planner.costs.rates import measured_cluster

    check_output_file(out, "OUT")
    with quiet_torchrec():
        if cluster is None and torch.cuda.is_available():
            count = torch.cuda.device_count()
            machine = this_machine("cuda", count, count)
            machine = machine.with_changes(world_size=world_size, ranks_per_node=ranks_per_node)
        else:
            machine = chosen_cluster(cluster or "cpu", world_size=world_size, ranks_per_node=ranks_per_node)
        if machine.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "calibrate measures this machine, which has no CUDA device; choose a cpu cluster, as --cluster cpu"
            )
        machine = measured_cluster(machine, optimizer)
    write_text(out, yaml.safe_dump(machine.model_dump(mode="json"), sort_keys=False))
    calibration = machine.calibration
    assert calibration is not None
    for dtype, error in calibration.median_error.items():
        show(f"{dtype}: median error {error:.1%} on held-out shapes ({calibration.machine})")


def _workload(
    config: Path | None,
    tables: Path | None,
    weights: PlannedDtype | None,
    optimizer: TableOptimizer | None,
    *,
    measure_pooling: bool,
) -> Workload:
    from torchrec_xd.planner import load_tables
    from torchrec_xd.training.workload import read_source, workload

    if (config is None) == (tables is None):
        raise UserError("give either a config (torchrec-xd plan make CONFIG) or a table list (--tables FILE)")
    if tables is not None:
        return workload(load_tables(tables), weights, optimizer, measure_pooling=measure_pooling)
    assert config is not None
    return workload(read_source(config), weights, optimizer, measure_pooling=measure_pooling)


def _show(planning: Planning, default: DefaultPlan | None, table: str | None) -> None:
    from torchrec_xd.planner import explain
    from torchrec_xd.planner.report.console import comparison_view, plan_view, verdicts_view

    if table is not None:
        screen.print(verdicts_view(table, explain(planning, table)))
    else:
        screen.print(plan_view(planning.plan))
    show(f"planned in {planning.seconds:.2f} s")
    if default is not None:
        screen.print(comparison_view(planning.plan, planning.seconds, default))


def _summary(planning: Planning, default: DefaultPlan | None, lookups: Sequence[RankLookups] | None) -> dict[str, Any]:
    plan = planning.plan
    content: dict[str, Any] = {
        "feasible": True,
        "seconds": planning.seconds,
        "slowest_rank_ms": plan.slowest_rank_ms,
        "lower_bound_ms": plan.lower_bound_ms,
        "gap": plan.gap,
        "tables": len(plan.tables),
        "world_size": plan.cluster.world_size,
        "peak_rss_mb": _peak_rss_mb(),
    }
    if default is not None:
        content["default"] = {
            "seconds": default.seconds,
            "slowest_rank_ms": default.slowest_rank_ms,
            "largest_hbm": default.largest_hbm,
            "largest_ddr": default.largest_ddr,
        }
    if lookups is not None:
        content["lookups"] = [asdict(rank) for rank in lookups]
    return content


def _fail(error: InfeasibleError, report: Path | None) -> NoReturn:
    """End with what does not fit and what would."""
    from torchrec_xd.planner import remedies

    changes = remedies(error.problem)
    if report is not None:
        write_json(
            report,
            {
                "feasible": False,
                "seconds": error.seconds,
                "slowest_rank_ms": None,
                "lower_bound_ms": None,
                "gap": None,
                "tables": len(error.problem.tables),
                "world_size": error.problem.cluster.world_size,
                "peak_rss_mb": _peak_rss_mb(),
                "reasons": str(error).splitlines(),
                "would_fit": changes,
            },
            indent=1,
        )
    advice = [f"would fit: {change}" for change in changes] or [
        "none of these alone would fit: more ranks, fp16 weights, less reservation, smaller batches, fewer constraints"
    ]
    raise UserError("\n".join([str(error), *advice]))


def _peak_rss_mb() -> float:
    """Peak resident memory of this process, MiB."""
    import torch

    from torchrec_xd.distributed.memory import peak_memory

    return peak_memory(torch.device("cpu")) / 2**20
