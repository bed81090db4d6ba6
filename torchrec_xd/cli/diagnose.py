"""`torchrec-xd diagnose`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import CheckpointOption, RunArgument, SplitName, show


def diagnose(
    run: RunArgument,
    split: Annotated[SplitName, typer.Option(help="Split whose rows are read.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: the run folder.")] = None,
    batches: Annotated[int, typer.Option(help="Batches that are read, at most.")] = 50,
    checkpoint: CheckpointOption = "best",
) -> None:
    """Name what is wrong with a run, and write what passes between its domains: diagnostics.json, diagnostics.html."""
    with quick_imports():
        from torchrec_xd.diagnostics.finding import Finding
        from torchrec_xd.training.diagnosis import NOTHING_FOUND
        from torchrec_xd.training.diagnosis import diagnose as run_diagnose

    folder = run if out is None else out
    content = run_diagnose(run, folder, split, checkpoint, batches=batches)
    for finding in content["findings"]:
        show(str(Finding(**finding)), "yellow")
    if not content["findings"]:
        show(NOTHING_FOUND)
    for name, why in content["left_out"].items():
        show(f"left out: {name}: {why}")
    show(f"{', '.join(content['diagnostics'])}: {folder}/diagnostics.html")
