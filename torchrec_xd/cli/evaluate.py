"""`torchrec-xd evaluate`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import CheckpointOption, RunArgument, SplitName, is_main_process, show_report


def evaluate(
    run: RunArgument,
    split: Annotated[SplitName, typer.Option(help="Split to measure.")] = "test",
    checkpoint: CheckpointOption = "best",
    out: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write it here, as an HTML page.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="Schema of other rows: what 'prepare --encoders' wrote of new raw rows.")
    ] = None,
) -> None:
    """Exact metrics of a finished run."""
    with quick_imports():
        from torchrec_xd.atomic_write import write_json
        from torchrec_xd.training.inference import evaluate as run_evaluate
        from torchrec_xd.writable import check_output_file

    if out is not None:
        check_output_file(out, "--json")
    report = run_evaluate(run, split, checkpoint, page, schema)
    if not is_main_process():
        return
    if out is not None:
        write_json(out, report)
    show_report(report, f"{run}: {split}")
