"""What commands print on stdout, and the options that several of them have."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.findings import findings

screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

RunArgument = Annotated[Path, typer.Argument(help="Run folder: the --run-dir of a train.")]
CheckpointOption = Annotated[
    Literal["best", "last"], typer.Option(help="The checkpoint with the best validation score, or the last one.")
]
SplitName = Literal["train", "valid", "test"]
AssignOption = Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of the config.")]


def show(text: str, style: str = "") -> None:
    """A line of plain text."""
    screen.print(text, style=style, markup=False)


def show_report(report: Any, title: str) -> None:
    """A report's table, and below it what its numbers hide."""
    screen.print(metric_table(report, title))
    for line in findings(report):
        show(f"warning: {line}", "yellow")


def is_main_process() -> bool:
    """Whether this process speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def metric_table(report: Any, title: str) -> Table:
    """A report's `eval` and `slices` as a table: a line per task, below it one per slice."""
    names = ("auc", "gauc", "logloss", "ne", "calibration")
    table = Table(title=title)
    table.add_column("task", no_wrap=True)
    for name in (*names, "rows", "positives"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in report["eval"].items():
        lines = {task: result}
        for column, groups in report["slices"][task].items():
            lines |= {f"  {column} {group}": values for group, values in groups.items()}
        for label, values in lines.items():
            numbers = ["–" if values[name] is None else f"{values[name]:.4f}" for name in names]
            table.add_row(Text(label), *numbers, f"{values['rows']:,}", f"{values['positives']:,}")
    return table


def name_and_path(text: str) -> tuple[str, str]:
    """The two parts of `--input NAME=PATH`.

    Raises:
        UserError: it has no such parts.
    """
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--input {text}: expected NAME=PATH, with the name of an input of the recipe")
    return name, path


def refuse_missing_packages(extra: str, *packages: str) -> None:
    """Check that an extra of this package is installed.

    Raises:
        UserError: it is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} cannot be imported: pip install 'torchrec-xd[{extra}]'")


def warn(line: str) -> None:
    """Print a line that deserves a look."""
    show(f"warning: {line}", "yellow")
