"""`torchrec-xd score`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import name_and_path, refuse_missing_packages, show, warn
from torchrec_xd.errors import UserError


def score(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] ROWS",
            help="Run folder, not with --artifact; then file, folder or glob with rows of one domain: Parquet, or raw.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Parquet file to write, local or on an object store.")],
    domain: Annotated[str | None, typer.Option(help="Domain of the rows; an artefact has one.")] = None,
    checkpoint: Annotated[
        Literal["best", "last"] | None,
        typer.Option(help="The checkpoint with the best validation score (default), or the last one."),
    ] = None,
    artifact: Annotated[
        Path | None, typer.Option(help="Score by what 'export --out' wrote, without torch, in place of a run.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="With --artifact: processes.")] = None,
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
    if raw and unseen_ids != "refuse":
        raise UserError("--unseen-ids has no use with --raw: values that are not in a vocabulary are row 0")
    if inputs and not raw:
        raise UserError("--input names inputs of a recipe, and belongs to --raw")
    given = dict(name_and_path(text) for text in inputs or [])
    *run, rows = names
    if len(run) != (artifact is None):
        what = "a run and rows: score RUN ROWS" if artifact is None else "rows alone: score ROWS --artifact DIR"
        raise UserError(f"score {' '.join(names)}: expected {what}")
    if artifact is not None:
        if checkpoint is not None:
            raise UserError("--checkpoint belongs to a run; an artefact holds one")
        options = {
            "parts": parts,
            "keep": {k: k for k in keep or ()},
            "unseen_ids": unseen_ids,
            "workers": workers or 1,
        }
        count = _by_artifact(artifact, rows, out, domain, options, given if raw else None)
    else:
        if workers is not None:
            raise UserError("--workers belongs to --artifact; a run is scored in one process")
        if domain is None:
            raise UserError("--domain is required with a run: the domain of the rows")
        count = _by_run(
            run[0], rows, out, domain, checkpoint or "best", parts, keep or (), unseen_ids, given if raw else None
        )
    show(f"{count:,} predictions in {out}")


def _by_run(
    run: str,
    rows: str,
    out: str,
    domain: str,
    checkpoint: Literal["best", "last"],
    parts: bool,
    keep: Sequence[str],
    unseen_ids: Literal["refuse", "drop"],
    inputs: Mapping[str, str] | None,
) -> int:
    with quick_imports():
        from torchrec_xd.training.inference import score as run_score
        from torchrec_xd.training.inference import score_raw

    if inputs is not None:
        return score_raw(run, rows, out, domain, checkpoint, parts=parts, keep=keep, inputs=inputs, say=warn)
    return run_score(run, rows, out, domain, checkpoint, parts=parts, keep=keep, unseen_ids=unseen_ids)


def _by_artifact(
    artifact: Path, rows: str, out: str, domain: str | None, options: dict[str, Any], inputs: Mapping[str, str] | None
) -> int:
    refuse_missing_packages("serve", "onnxruntime", *(() if inputs is None else ("ibis", "duckdb", "sqlglot")))
    from torchrec_xd.serving.artifact import Artifact, find_artifact
    from torchrec_xd.serving.batch_scoring import ScoreOptions, score_by_artifact, score_raw_by_artifact

    own = Artifact.open(find_artifact(artifact), check=False).manifest.domain
    if domain not in (None, own):
        raise UserError(f"--domain {domain}: the artefact scores rows of '{own}'")
    if inputs is not None:
        return score_raw_by_artifact(artifact, rows, out, ScoreOptions(**options), inputs, say=warn)
    return score_by_artifact(artifact, rows, out, ScoreOptions(**options))
