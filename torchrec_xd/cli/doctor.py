"""`torchrec-xd doctor`."""
# ruff: noqa: PLC0415

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from torchrec_xd.cli.screen import screen


def doctor() -> None:
    """Show versions, the FBGEMM build and what this machine can do; exit code 1 if something is wrong."""
    from torchrec_xd.doctor import examine

    checks = examine()
    table = Table("", "found", "advice", title="torchrec-xd doctor")
    for check in checks:
        style = "" if check.ok else "bold red"
        table.add_row(Text(check.name), Text(check.value, style), Text(check.advice, style))
    screen.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
