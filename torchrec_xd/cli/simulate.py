"""`torchrec-xd simulate`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import screen, show
from torchrec_xd.errors import InterruptedRunError


def simulate(
    study: Annotated[Path, typer.Argument(help="YAML file of the simulation (docs/simulate.md).")],
    out: Annotated[Path, typer.Option(help="Folder of its worlds, of its arms' days, and of its results.")],
    jobs: Annotated[int, typer.Option(min=1, help="Days of arms done at a time, a process each.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds. Default: what the study says.")] = None,
    logs: Annotated[
        Literal["own", "shared"] | None, typer.Option(help="What arms learn from. Default: what the study says.")
    ] = None,
    training: Annotated[
        Literal["window", "continue"] | None,
        typer.Option(help="Anew every day, or on from yesterday's models. Default: what the study says."),
    ] = None,
) -> None:
    """Run an A/B test over days in a planted world, where every arm learns from what was shown; or go on with it."""
    with quick_imports():
        from torchrec_xd.study.simulation.design import load_simulation
        from torchrec_xd.study.simulation.simulate import run_simulation

    simulation = load_simulation(study, seeds, logs, training)
    try:
        results = run_simulation(simulation, study, out, jobs=jobs)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}; the same command goes on") from None
    _show(results)
    show(f"results in {out}/results.md, .html and .json")


def _show(results: dict[str, Any]) -> None:
    table = Table(title=f"{results['simulation']}: clicks per impression less those of {results['reference']}")
    for name in ("arm", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "interval", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in results["verdicts"]:
        interval = "–" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
        table.add_row(line["arm"], line["metric"], f"{line['delta']:+.4f}", interval, line["verdict"])
    screen.print(table)
