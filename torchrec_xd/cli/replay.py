"""`torchrec-xd replay`."""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import screen, show
from torchrec_xd.errors import InterruptedRunError, UserError


def replay(
    file: Annotated[Path, typer.Argument(metavar="REPLAY", help="YAML file of the replay (docs/replay.md).")],
    out: Annotated[Path, typer.Option(help="Folder of its steps, SEED/POLICY/DATE, and of its results.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds: 0, 1, … Default: what the file says.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Steps done at a time; they share the cores.")] = 1,
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of every config.")] = None,
) -> None:
    """Go through a history slice by slice: score, then train; policies of training side by side."""
    with quick_imports():
        from torchrec_xd.study.replay.replaying import replay as run_replay

    try:
        failed = run_replay(file, out, seeds=seeds, assign=tuple(assign or ()), workers=jobs)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}; the same command goes on") from None
    _show_verdicts(json.loads((out / "results.json").read_text(encoding="utf-8")))
    show(f"results in {out}/results.md, .html and .json")
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise UserError(f"{len(failed)} steps failed; the same command tries them again:\n{listed}")


def _show_verdicts(results: dict[str, Any]) -> None:
    table = Table(title=f"{results['replay']}: differences to {results['reference']}, with 95 % intervals")
    for name in ("model", "task", "policy", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "interval", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in results["verdicts"]:
        interval = "–" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
        words = (Text(line[name]) for name in ("model", "task", "policy", "metric"))
        table.add_row(*words, f"{line['delta']:+.4f}", interval, line["verdict"])
    if results["verdicts"]:
        screen.print(table)
