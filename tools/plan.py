"""Plan how embedding tables are sharded over a cluster: `python -m tools.plan CONFIG | --tables FILE`.

Instead of planning, --diff compares two plans, --check a plan with its run, and --calibrate measures this machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
import yaml
from rich.console import Console

from tools.workload import Workload, list_workload, with_wishes
from torchrec_xd.distributed.memory import peak_memory
from torchrec_xd.distributed.optimizers import TableOptimizer
from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import InfeasibleError, Planning, make_plan
from torchrec_xd.planner.costs.measurement import RankLookups, measure_ranks
from torchrec_xd.planner.costs.measurement import calibrate as measured_costs
from torchrec_xd.planner.inputs.cluster import Cluster, load_cluster
from torchrec_xd.planner.inputs.tables import WeightType
from torchrec_xd.planner.plan import diff_plans, read_plan
from torchrec_xd.planner.report.check import check_run
from torchrec_xd.planner.report.console import check_view, comparison_view, lookups_view, plan_view, verdicts_view
from torchrec_xd.planner.report.explanation import explain, remedies
from torchrec_xd.planner.report.page import save_plan_page
from torchrec_xd.planner.report.torchrec_default import StockPlan, stock_plan

CLUSTERS = Path(__file__).parent.parent / "configs" / "clusters"
"""Named cluster profiles."""
EXIT_USER_ERROR = 2
"""Also where no plan fits: the message says what is missing."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
screen = Console(highlight=False)
if not screen.is_terminal:
    screen = Console(highlight=False, width=150)


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(help="Run config or schema (YAML): its real tables.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Table list: CSV or YAML.")] = None,
    cluster: Annotated[str, typer.Option(help="Profile in configs/clusters, or a path.")] = "8xH100",
    world_size: Annotated[int | None, typer.Option(help="Ranks in all.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Ranks of a node.")] = None,
    hbm: Annotated[float | None, typer.Option(help="GPU memory per rank, GiB.")] = None,
    ddr: Annotated[float | None, typer.Option(help="Host memory per rank, GiB.")] = None,
    intra: Annotated[float | None, typer.Option(help="Bandwidth inside a node, GiB/s per rank.")] = None,
    inter: Annotated[float | None, typer.Option(help="Bandwidth between nodes, GiB/s per rank.")] = None,
    reservation: Annotated[float | None, typer.Option(help="Share of memory kept free of tables, 0 to 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per rank and step; a config's own, else 512.")] = None,
    weights: Annotated[WeightType | None, typer.Option(help="Weight type; a config's own, else fp32.")] = None,
    optimizer: Annotated[TableOptimizer | None, typer.Option(help="A config's own, else rowwise_adagrad.")] = None,
    pooling: Annotated[Path | None, typer.Option(help="YAML, feature: mean ids per sample.")] = None,
    measure_pooling: Annotated[
        bool, typer.Option("--measure-pooling", help="Take these means from the config's training files.")
    ] = False,
    measure_lookups: Annotated[
        bool, typer.Option("--measure-lookups", help="Run each rank's lookups here, beside their estimates.")
    ] = False,
    constraints: Annotated[Path | None, typer.Option(help="YAML with 'constraints': pins, bans, co-locations.")] = None,
    effort: Annotated[int | None, typer.Option(help="Vain attempts after which the search ends.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan (JSON) that training loads.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write a short report (JSON).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report to be read in a browser.")] = None,
    table: Annotated[str | None, typer.Option("--explain", help="Why this table is sharded as it is.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Run torchrec's default planner as well.")] = False,
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Instead of planning: what two plans differ in.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Instead of planning: a finished run's memory and time beside its plan's."),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Instead of planning: measure lookups here, write a cluster profile.")
    ] = None,
) -> None:
    """Plan, explain, compare. Exit code 2 where no plan fits or what was asked is wrong."""
    with _told_as_user_errors(), _quiet_torchrec():
        _refuse_ambiguity(config, tables, {"--diff": diff, "--check": check, "--calibrate": calibrate})
        if diff is not None:
            _diff(*diff)
            return
        if check is not None:
            _check(check, report)
            return
        machine = load_cluster(cluster, CLUSTERS).with_changes(
            world_size=world_size,
            ranks_per_node=ranks_per_node,
            hbm_gib=hbm,
            ddr_gib=ddr,
            intra_node_gib_s=intra,
            inter_node_gib_s=inter,
            reservation=reservation,
        )
        if calibrate is not None:
            _calibrate(machine, optimizer or "rowwise_adagrad", calibrate)
            return
        work = _workload(config, tables, weights, optimizer, measure_pooling=measure_pooling)
        settings = with_wishes(work.settings, pooling, constraints, batch_size=batch_size, effort=effort)
        try:
            planning = make_plan(work.module, work.sharders, machine, settings)
        except InfeasibleError as error:
            _fail(error, report)
        stock = stock_plan(work.module, work.sharders, machine, settings) if compare else None
        _show(planning, stock, table)
        lookups = measure_ranks(planning, optimizer or work.optimizer) if measure_lookups else None
        if lookups is not None:
            screen.print(lookups_view(lookups))
        if out is not None:
            planning.plan.save(out)
        if html is not None:
            save_plan_page(planning.plan, html)
        if report is not None:
            _write(report, _summary(planning, stock, lookups))


@contextmanager
def _told_as_user_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        screen.print("error:", str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None


@contextmanager
def _quiet_torchrec() -> Iterator[None]:
    """Torchrec warns about its own planner's defaults, which are not used here."""
    logger = logging.getLogger("torchrec")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _refuse_ambiguity(config: Path | None, tables: Path | None, alone: dict[str, object]) -> None:
    given = [name for name, value in alone.items() if value is not None]
    sources = [name for name, value in {"CONFIG": config, "--tables": tables}.items() if value is not None]
    if given and len(given) + len(sources) > 1:
        raise UserError(f"{given[0]} is done instead of planning; leave out: {', '.join([*given[1:], *sources])}")
    if not given and len(sources) != 1:
        raise UserError("give either a config (python -m tools.plan CONFIG) or a table list (--tables FILE)")


def _workload(
    config: Path | None,
    tables: Path | None,
    weights: WeightType | None,
    optimizer: TableOptimizer | None,
    *,
    measure_pooling: bool,
) -> Workload:
    if config is not None:
        # Data, models and trainer are of no use to a table list.
        from tools.run_workload import config_workload  # noqa: PLC0415

        return config_workload(config, weights, optimizer, measure_pooling=measure_pooling)
    assert tables is not None
    if measure_pooling:
        raise UserError("--measure-pooling needs a config: a table list has no data")
    return list_workload(tables, weights or "fp32", optimizer or "rowwise_adagrad")


def _diff(before: Path, after: Path) -> None:
    lines = diff_plans(read_plan(before), read_plan(after))
    screen.print("\n".join(lines) if lines else "the plans are equal", markup=False)


def _check(run: Path, report: Path | None) -> None:
    checks = check_run(run)
    screen.print(check_view(checks))
    if report is not None:
        ranks = [
            {**asdict(c), "estimated_ms": c.estimated_ms, "bytes_ratio": c.bytes_ratio, "ms_ratio": c.ms_ratio}
            for c in checks
        ]
        _write(report, {"run": str(run), "ranks": ranks})


def _calibrate(machine: Cluster, optimizer: TableOptimizer, path: Path) -> None:
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--calibrate measures this machine, which has no CUDA device; choose a cpu cluster")
    calibration = measured_costs(machine.device, optimizer)
    content = machine.model_copy(update={"calibration": calibration}).model_dump(mode="json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for dtype, error in calibration.median_error.items():
        screen.print(f"{dtype}: median error {error:.1%} on shapes that were not fitted ({calibration.machine})")


def _show(planning: Planning, stock: StockPlan | None, table: str | None) -> None:
    if table is not None:
        screen.print(verdicts_view(table, explain(planning, table)))
    else:
        screen.print(plan_view(planning.plan))
    screen.print(f"planned in {planning.seconds:.2f} s")
    if stock is not None:
        screen.print(comparison_view(planning.plan, planning.seconds, stock))


def _summary(planning: Planning, stock: StockPlan | None, lookups: Sequence[RankLookups] | None) -> dict[str, Any]:
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
    if stock is not None:
        content["default"] = {
            "seconds": stock.seconds,
            "slowest_rank_ms": stock.slowest_rank_ms,
            "largest_hbm": stock.largest_hbm,
            "largest_ddr": stock.largest_ddr,
        }
    if lookups is not None:
        content["lookups"] = [asdict(rank) for rank in lookups]
    return content


def _fail(error: InfeasibleError, report: Path | None) -> NoReturn:
    """Say what does not fit and what would help, then leave."""
    changes = remedies(error.priced)
    if report is not None:
        _write(
            report,
            {
                "feasible": False,
                "seconds": error.seconds,
                "slowest_rank_ms": None,
                "lower_bound_ms": None,
                "gap": None,
                "tables": len(error.priced.tables),
                "world_size": error.priced.cluster.world_size,
                "peak_rss_mb": _peak_rss_mb(),
                "reasons": str(error).splitlines(),
                "would_fit": changes,
            },
        )
    advice = [f"would fit: {change}" for change in changes] or ["no single change that was tried would fit"]
    raise UserError("\n".join([str(error), *advice]))


def _peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    return peak_memory(torch.device("cpu")) / 2**20


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
