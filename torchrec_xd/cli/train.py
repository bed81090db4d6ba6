"""`torchrec-xd train`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import AssignOption, is_main_process, show_report


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run, or the name of a shipped config.")],
    run_dir: Annotated[Path, typer.Option(help="Folder for everything the run writes.")],
    schema: Annotated[
        Path | None, typer.Option(help="YAML file of the schema, in place of the one that the config names, if any.")
    ] = None,
    assign: AssignOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --run-dir.")] = False,
    restartable: Annotated[
        bool,
        typer.Option("--restartable", help="Resume if --run-dir holds this run, else begin; leave a finished one."),
    ] = False,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Resume although the data files have changed.")
    ] = False,
    continue_from: Annotated[
        Path | None, typer.Option(help="Run folder whose model this run goes on with, on new rows.")
    ] = None,
) -> None:
    """Train, validate and evaluate one model."""
    with quick_imports():
        from torchrec_xd.config import load_config
        from torchrec_xd.shipped import config_file
        from torchrec_xd.training.train_run import train as run_train

    settings = load_config(config_file(config), assign, schema)
    content = run_train(
        settings,
        run_dir,
        resume=resume,
        restartable=restartable,
        accept_changed_data=accept_changed_data,
        continue_from=continue_from,
    )
    if is_main_process():
        show_report(content, f"{run_dir}: {settings.model.name}, {content['split']}")
