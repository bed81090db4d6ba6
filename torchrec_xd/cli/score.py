"""`torchrec-xd score`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.cli.screen import CheckpointOption, RunArgument, name_and_path, show, warn
from torchrec_xd.errors import UserError


def score(
    run: RunArgument,
    rows: Annotated[str, typer.Argument(help="File, folder or glob with rows of one domain: Parquet, or raw rows.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    domain: Annotated[str, typer.Option(help="Domain of the rows.")],
    checkpoint: CheckpointOption = "best",
    parts: Annotated[bool, typer.Option("--parts", help="Also score_NAME: untruncated, each part by itself.")] = False,
    keep: Annotated[list[str] | None, typer.Option(help="Column of ROWS to write too; may be repeated.")] = None,
    unseen_ids: Annotated[
        Literal["refuse", "drop"], typer.Option(help="Ids outside their tables: an error, or left out and counted.")
    ] = "refuse",
    raw: Annotated[
        bool, typer.Option("--raw", help="ROWS are as the recipe's inputs; the run's encoders make numbers of them.")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="With --raw: NAME=PATH, files to read for an input instead."),
    ] = None,
) -> None:
    """Write a run's predictions as Parquet, in the order of the input."""
    from torchrec_xd.training.inference import score as run_score
    from torchrec_xd.training.inference import score_raw

    if raw:
        if unseen_ids != "refuse":
            raise UserError("--unseen-ids has no use with --raw: values that are not in a vocabulary are row 0")
        given = dict(name_and_path(text) for text in inputs or [])
        count = score_raw(run, rows, out, domain, checkpoint, parts=parts, keep=keep or (), inputs=given, say=warn)
        show(f"{count:,} predictions in {out}")
        return
    if inputs:
        raise UserError("--input names inputs of a recipe, and belongs to --raw")
    count = run_score(run, rows, out, domain, checkpoint, parts=parts, keep=keep or (), unseen_ids=unseen_ids)
    show(f"{count:,} predictions in {out}")
