"""`torchrec-xd label`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.screen import AssignOption, show


def label(
    config: Annotated[Path, typer.Argument(help="YAML file: logs, columns, label settings (docs/data.md).")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    assign: AssignOption = None,
) -> None:
    """Add EXIT's interest combination labels to any exposures, from logs of actions."""
    from torchrec_xd.datasets import LabelStepSettings
    from torchrec_xd.datasets import label as run_label
    from torchrec_xd.settings import load_yaml, override, validate

    run_label(validate(LabelStepSettings, override(load_yaml(config), assign or []), str(config)), out, show)
