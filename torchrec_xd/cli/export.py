"""`torchrec-xd export`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import CheckpointOption, RunArgument, refuse_missing_packages, show


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder of versions; the new one becomes the current one.")],
    domain: Annotated[
        str | None, typer.Option(help="Whose rows are scored. Default: the only domain, or the only target.")
    ] = None,
    tables: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Type of the tables' numbers; int8 has a scale per row.")
    ] = "fp32",
    checkpoint: CheckpointOption = "best",
    max_auc_change: Annotated[
        float, typer.Option(min=0, max=1, help="What narrower tables may change in the AUC of any task.")
    ] = 0.0005,
    since: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A version below --out: also write what changed since then, to be copied to where that version is.",
        ),
    ] = None,
) -> None:
    """Write a run's model for servers that need no torch, checked against the run's own scores."""
    refuse_missing_packages("export", "onnx", "onnxscript", "onnxruntime", "safetensors")
    with quick_imports():
        from torchrec_xd.export.api import export as run_export
        from torchrec_xd.serving.artifact import CHANGES

    artifact = run_export(run, out, domain, tables, checkpoint, max_auc_change, since)
    manifest = artifact.manifest
    size = sum(path.stat().st_size for path in artifact.folder.rglob("*") if path.is_file()) / 1e6
    show(
        f"version {artifact.version}, {manifest.model} for '{manifest.domain}': {artifact.folder} ({size:,.1f} MB), "
        f"scores as {manifest.run} to {manifest.difference:.1e}"
    )
    if since is not None:
        names = (artifact.folder / CHANGES).read_text(encoding="utf-8").split("\n")[:-1]
        changed = sum((artifact.folder / name).stat().st_size for name in names) / 1e6
        show(f"changed since version {since}: {changed:,.1f} MB, the files that {artifact.folder / CHANGES} names")
    for task, change in manifest.auc_change.items():
        show(f"{tables} changes the AUC of {task} by {change:+.6f} on the {manifest.auc_split} split")
