"""`torchrec-xd score`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.cli.screen import CheckpointOption, RunArgument, show


def score(
    run: RunArgument,
    rows: Annotated[str, typer.Argument(help="Parquet file, folder or glob with rows of one domain.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    domain: Annotated[str, typer.Option(help="Domain of the rows.")],
    checkpoint: CheckpointOption = "best",
    parts: Annotated[bool, typer.Option("--parts", help="Also score_NAME: untruncated, each part by itself.")] = False,
    keep: Annotated[list[str] | None, typer.Option(help="Column of ROWS to write too; may be repeated.")] = None,
    unseen_ids: Annotated[
        Literal["refuse", "drop"], typer.Option(help="Ids outside their tables: an error, or left out and counted.")
    ] = "refuse",
) -> None:
    """Write a run's predictions as Parquet, in the order of the input."""
    from torchrec_xd.training.inference import score as run_score

    count = run_score(run, rows, out, domain, checkpoint, parts=parts, keep=keep or (), unseen_ids=unseen_ids)
    show(f"{count:,} predictions in {out}")
