"""`torchrec-xd init`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_xd.cli.screen import show


def init(
    inputs: Annotated[list[str], typer.Argument(help="NAME=PATH each: file, folder, glob or lake table.")],
    out: Annotated[Path, typer.Option(help="The recipe, a YAML file.")],
    layout: Annotated[
        Literal["recbole", "movielens", "criteo", "avazu", "aliexpress", "kuairand"] | None,
        typer.Option("--format", help="Of a known data set at PATH: nothing has to be guessed."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing recipe.")] = False,
) -> None:
    """Look at raw logs and write a recipe for them, with reasons and questions as comments."""
    from torchrec_xd.prepare.init import init_recipe

    init_recipe(inputs, out, show, force, layout)
