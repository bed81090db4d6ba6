"""`torchrec-xd compare`, `ablate` and `tune`."""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from torchrec_xd.cli.quick_imports import quick_imports
from torchrec_xd.cli.screen import screen, show
from torchrec_xd.errors import InterruptedRunError, UserError

if TYPE_CHECKING:
    from torchrec_xd.study.design import Study, Tuned

StudyFile = Annotated[Path, typer.Argument(help="YAML file of the study (docs/compare.md).")]
StudyFolder = Annotated[Path, typer.Option(help="Folder of its runs, DATA/SEED/MODEL, and of its results.")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds: 0, 1, … Default: what the study says.")]
SomeData = Annotated[list[str] | None, typer.Option(help="Only this data set of the study; may be repeated.")]
SomeModels = Annotated[list[str] | None, typer.Option(help="Only this model, the reference, and what they start from.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs trained at a time; they share the cores.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of every config.")]
Listed = Annotated[bool, typer.Option("--list", help="Train nothing: print a TorchX command for every run left.")]


def compare(
    study: StudyFile,
    out: StudyFolder,
    seeds: Seeds = None,
    data: SomeData = None,
    models: SomeModels = None,
    jobs: Jobs = 1,
    assign: Assign = None,
    tuned: Annotated[
        Path | None, typer.Option(help="tuned.json that `tune` wrote, or results.json of a comparison.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Compare with this model, not with the study's reference: OUT/results-NAME.*")
    ] = None,
    listed: Listed = False,
) -> None:
    """Compare models over data sets and seeds; what is finished is not trained again."""
    with quick_imports():
        from torchrec_xd.study.comparison import results_name
        from torchrec_xd.study.design import load_study, load_tuned, select

    chosen = select(load_study(study, reference), data or (), models or (), seeds, tuple(assign or ()))
    settings = load_tuned(tuned) if tuned else None
    if listed:
        _list_commands(chosen, study, out, settings)
    else:
        _run_study(chosen, study, out, jobs, settings, results_name(reference))


def ablate(
    study: StudyFile,
    out: StudyFolder,
    seeds: Seeds = None,
    data: SomeData = None,
    models: SomeModels = None,
    jobs: Jobs = 1,
    assign: Assign = None,
    listed: Listed = False,
) -> None:
    """Compare a model with itself, less one part or one setting changed at a time."""
    from torchrec_xd.study.design import load_ablation, select

    chosen = select(load_ablation(study), data or (), models or (), seeds, tuple(assign or ()))
    if listed:
        _list_commands(chosen, study, out, None)
    else:
        _run_study(chosen, study, out, jobs, None)


def tune(
    study: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder of all trials and of tuned.json.")],
    trials: Annotated[int, typer.Option(min=1, help="Budget of every model on every data set.")] = 20,
    data: SomeData = None,
    models: SomeModels = None,
    jobs: Jobs = 1,
    assign: Assign = None,
) -> None:
    """Choose settings on the validation split, with the same budget for every model: `compare --tuned` takes them."""
    with quick_imports():
        from torchrec_xd.study.design import load_study, select
        from torchrec_xd.study.tuning import tune as run_tune

    chosen = select(load_study(study), data or (), models or (), None, tuple(assign or ()))
    try:
        failed = run_tune(chosen, study, out, trials, workers=jobs)
    except InterruptedRunError as error:
        raise _same_command_goes_on(error) from None
    for name, reason in failed.items():
        show(f"failed: {name}: {reason}")
    show(f"settings in {out}/tuned.json")


def _run_study(study: Study, path: Path, out: Path, jobs: int, tuned: Tuned | None, name: str = "results") -> None:
    with quick_imports():
        from torchrec_xd.study.comparison import run_study

    try:
        failed = run_study(study, path, out, name, workers=jobs, tuned=tuned)
    except InterruptedRunError as error:
        raise _same_command_goes_on(error) from None
    _show_results(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))
    show(f"results in {out}/{name}.md, .html and .json")
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise UserError(f"{len(failed)} runs failed; the same command tries them again:\n{listed}")


def _show_results(results: dict[str, Any]) -> None:
    """The verdicts on all test rows, and the warnings."""
    table = Table(title=f"{results['study']}: differences to {results['reference']}, with 95 % intervals")
    for name in ("data", "model", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "interval", "users", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in results["verdicts"]:
        interval = "–" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
        numbers = f"{line['delta']:+.4f}", interval, f"{line['users']:,}", line["verdict"]
        table.add_row(*(Text(line[name]) for name in ("data", "model", "metric")), *numbers)
    if results["verdicts"]:
        screen.print(table)
    for line in results["warnings"]:
        show(f"warning: {line}", "yellow")


def _list_commands(study: Study, path: Path, out: Path, tuned: Tuned | None) -> None:
    with quick_imports():
        from torchrec_xd.study.comparison import commands

    for line in commands(study, path, out, tuned):
        typer.echo(line)


def _same_command_goes_on(error: InterruptedRunError) -> InterruptedRunError:
    return InterruptedRunError(f"{error}; the same command goes on")
