"""`torchrec-xd init`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.cli.screen import show


def init(
    inputs: Annotated[list[str], typer.Argument(help="NAME=PATH: a file, folder, glob or lake table; several.")],
    out: Annotated[Path, typer.Option(help="The recipe, a YAML file.")],
    force: Annotated[bool, typer.Option("--force", help="Write over an existing recipe.")] = False,
) -> None:
    """Look at raw logs and write a recipe for them, with reasons and questions as comments."""
    from torchrec_xd.prepare.init import init_recipe

    init_recipe(inputs, out, show, force)
