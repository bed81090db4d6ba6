"""`torchrec-xd config`: the configs that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from torchrec_xd.cli.local_paths import local_paths
from torchrec_xd.cli.screen import screen
from torchrec_xd.shipped import copy_config, find_config, shipped_configs
from torchrec_xd.writable import check_output_folder

app = typer.Typer(help="Configs that come with the package: list them, show one, copy one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name, as `torchrec-xd config list` shows it.")]


@app.command("list")
@local_paths
def list_configs() -> None:
    """List the configs, each with its first line."""
    table = Table("name", "what it is")
    for name, summary in shipped_configs().items():
        table.add_row(Text(name), Text(summary))
    screen.print(table)


@app.command("show")
@local_paths
def show_config(name: Name) -> None:
    """Print a config as it is written."""
    typer.echo(find_config(name).read_text(encoding="utf-8"), nl=False)


@app.command("copy")
@local_paths
def copy(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder to copy into; files that are there stay.")] = Path("configs"),
) -> None:
    """Copy a config and every file that it refers to, to be changed."""
    check_output_folder(out, "--out")
    for path in copy_config(name, out):
        typer.echo(path)
