"""`torchrec-xd plan scale`: rows per second and cost against the number of ranks."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.atomic_write import write_json
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
    chosen_cluster,
    quiet_torchrec,
)
from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import AssignOption, screen, show
from torchrec_xd.errors import UserError
from torchrec_xd.writable import check_output_file


def scale(
    config: Annotated[Path, typer.Argument(help="Run config (YAML) whose training is estimated.")],
    cluster: ClusterOption = "8xH100",
    ranks: Annotated[str, typer.Option(help="FIRST..LAST numbers of ranks; those between by doubling.")] = "1..1024",
    ranks_per_node: RanksPerNode = None,
    hbm: Hbm = None,
    ddr: Ddr = None,
    intra: Intra = None,
    inter: Inter = None,
    reservation: Reservation = None,
    batch_size: BatchSize = None,
    global_batch: Annotated[
        int | None, typer.Option(min=1, help="Rows that all ranks share at each size. Default: each has --batch-size.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16"] | None,
        typer.Option(help="Of matrix products. Default: the config's; TF32 on GPUs for fp32."),
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of one rank. Default: the profile's.")] = None,
    reader: Annotated[
        float | None, typer.Option(min=1, help="Rows/s that one rank reads. Default: reading costs nothing.")
    ] = None,
    weights: Weights = None,
    optimizer: Optimizer = None,
    pooling: Pooling = None,
    measure_pooling: MeasurePooling = False,
    constraints: Constraints = None,
    effort: Effort = None,
    assign: AssignOption = None,
    report: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write the curves as an HTML page.")] = None,
) -> None:
    """Estimate training at growing numbers of ranks: rows/s, what binds, cost. Exit code 2 if no size fits."""
    with quick_imports():
        from torchrec_xd.config import load_config
        from torchrec_xd.log import quiet_torch
        from torchrec_xd.planner.report.scaling import assumptions, scale_record, scale_view
        from torchrec_xd.planner.report.scaling_page import save_scaling_page
        from torchrec_xd.planner.step.counting import count_dense, longest_phase, meta_batch
        from torchrec_xd.planner.step.estimate import check_precision, default_precision
        from torchrec_xd.planner.step.scaling import parse_ranks, sizes
        from torchrec_xd.planner.step.scaling import scale as scaled
        from torchrec_xd.settings import load_yaml
        from torchrec_xd.training.workload import with_files, workload

    for option, path in {"--json": report, "--html": html}.items():
        if path is not None:
            check_output_file(path, option)
    if batch_size is not None and global_batch is not None:
        raise UserError("--batch-size is per rank, --global-batch of all ranks together; give one of the two")
    counts = parse_ranks(ranks)
    if "features" in load_yaml(config):
        raise UserError(f"{config}: a schema has tables and no model; give the run config whose training is estimated")
    run = load_config(config, assign)
    with quiet_torch(), quiet_torchrec():
        machine = chosen_cluster(
            cluster,
            world_size=counts[0],
            ranks_per_node=ranks_per_node,
            hbm_gib=hbm,
            ddr_gib=ddr,
            intra_node_gib_s=intra,
            inter_node_gib_s=inter,
            reservation=reservation,
            price_per_hour=price_per_hour,
        )
        kind = precision or default_precision(machine, run.trainer.precision)
        check_precision(machine, kind)
        at = sizes(machine, counts, batch_size or run.loader.batch_size, global_batch)
        work = workload(run, weights, optimizer, measure_pooling=measure_pooling)
        settings = with_files(work.settings, pooling, constraints, batch_size=batch_size, effort=effort)
        schema, loader = run.schema_in_use, run.loader
        shares, phase = longest_phase(schema, loader.mixing, loader.curriculum, run.trainer.epochs)
        points = scaled(
            *(work.module, work.sharders, settings, at),
            lambda rows: count_dense(work.module, meta_batch(schema, rows, settings.pooling, shares)),
            *(kind, reader),
        )
    if all(point.step is None for point in points):
        raise UserError(f"no size of {ranks} fits; the largest: {points[-1].reason}")
    notes = [*assumptions(machine, kind), *([phase] if phase else [])]
    screen.print(scale_view(points))
    for note in notes:
        show(note)
    if report is not None:
        write_json(report, scale_record(points, notes), indent=1)
    if html is not None:
        save_scaling_page(points, notes, f"{config}: {run.model.name}", html)
