"""The command `torchrec-xd`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_xd.errors import InterruptedRunError, UserError

# torch and torchrec take seconds to import: each command imports what it needs, so that --help and errors come at once.
# ruff: noqa: PLC0415

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: the run was stopped, wrote a checkpoint, and can go on with --resume."""

app = typer.Typer(
    help="Train cross-domain recommendation models on sharded embedding tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

Run = Annotated[Path, typer.Argument(help="Run folder: the --run-dir of a train.")]
Checkpoint = Annotated[
    Literal["best", "last"], typer.Option(help="The checkpoint with the best validation score, or the last one.")
]


@app.callback()
def options(
    context: typer.Context, debug: Annotated[bool, typer.Option(help="Show the traceback of errors.")] = False
) -> None:
    """Options before the command."""
    context.obj = debug


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Data set: cj_feed, cj_departments, cj_placement, or world.")],
    out: Annotated[Path | None, typer.Option(help="Folder; data/NAME or data/world_PRESET unless told.")] = None,
    preset: Annotated[str | None, typer.Option(help="World: which one; a wrong name lists them.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with prepare settings.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE on top of the settings.")] = None,
    engine: Annotated[Literal["duckdb", "spark"] | None, typer.Option(help="What runs the queries.")] = None,
) -> None:
    """Write a data set as Parquet, once: from the real events, or a planted world, whose best metrics are known."""
    from torchrec_xd.datasets import PRESETS, PrepareSettings, prepare_world
    from torchrec_xd.datasets import prepare as run_prepare
    from torchrec_xd.settings import load_yaml, override, validate

    content = override(
        load_yaml(config) if config else {}, [*(assign or []), *([f"engine={engine}"] if engine else [])]
    )
    if (name == "world") != (preset is not None):
        choices = f"prepare world --preset NAME, one of: {', '.join(PRESETS)}"
        raise UserError(f"a world has a preset, and no other data set has one; {choices}")

    def progress(line: str) -> None:
        screen.print(line, markup=False)

    if preset is not None:
        prepare_world(preset, out or Path("data") / f"world_{preset}", content, progress)
    else:
        settings = validate(PrepareSettings, content, str(config or "--set"))
        run_prepare(name, out or Path("data") / name, settings, progress)


@app.command()
def label(
    config: Annotated[Path, typer.Argument(help="YAML file: logs, columns, label settings (docs/data.md).")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of the config.")] = None,
) -> None:
    """Add EXIT's interest combination labels to any exposures, from logs of actions."""
    from torchrec_xd.datasets import LabelStepSettings
    from torchrec_xd.datasets import label as run_label
    from torchrec_xd.settings import load_yaml, override, validate

    settings = validate(LabelStepSettings, override(load_yaml(config), assign or []), str(config))
    run_label(settings, out, lambda line: screen.print(line, markup=False))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    run_dir: Annotated[Path, typer.Option(help="Folder for everything the run writes.")],
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of the config.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --run-dir.")] = False,
    restartable: Annotated[
        bool,
        typer.Option("--restartable", help="Resume if --run-dir holds this run, else begin; leave a finished one."),
    ] = False,
) -> None:
    """Train, validate and evaluate one model."""
    from torchrec_xd.config import load_config
    from torchrec_xd.training.train_run import train as run_train

    settings = load_config(config, assign)
    content = run_train(settings, run_dir, resume=resume, restartable=restartable)
    if os.environ.get("RANK", "0") == "0":
        screen.print(metric_table(content, f"{run_dir}: {settings.model.name}, {content['split']}"))


@app.command()
def evaluate(
    run: Run,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Split to measure.")] = "test",
    checkpoint: Checkpoint = "best",
    out: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write it here, as an HTML page.")] = None,
) -> None:
    """Exact metrics of a finished run."""
    import json

    from torchrec_xd.training.inference import evaluate

    report = evaluate(run, split, checkpoint, page)
    if os.environ.get("RANK", "0") != "0":
        return
    if out is not None:
        out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    screen.print(metric_table(report, f"{run}: {split}"))


@app.command()
def diagnose(
    run: Run,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Split whose rows are looked at.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write; the run's own unless told.")] = None,
    batches: Annotated[int, typer.Option(help="Batches that are looked at, at most.")] = 50,
    checkpoint: Checkpoint = "best",
) -> None:
    """What passes between the domains of a run, as diagnostics.json and diagnostics.html."""
    from torchrec_xd.training.diagnosis import diagnose as run_diagnose

    folder = run if out is None else out
    content = run_diagnose(run, folder, split, checkpoint, batches=batches)
    for name, why in content["left_out"].items():
        screen.print(f"left out: {name}: {why}", markup=False)
    screen.print(f"{', '.join(content['diagnostics'])}: {folder}/diagnostics.html", markup=False)


@app.command()
def score(
    run: Run,
    rows: Annotated[str, typer.Argument(help="Parquet file, folder or glob with rows of one domain.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    domain: Annotated[str, typer.Option(help="Domain of the rows.")],
    checkpoint: Checkpoint = "best",
    parts: Annotated[bool, typer.Option("--parts", help="Also score_NAME: untruncated, each part by itself.")] = False,
) -> None:
    """Write a run's predictions as Parquet, in the order of the input."""
    from torchrec_xd.training.inference import score as run_score

    count = run_score(run, rows, out, domain, checkpoint, parts=parts)
    screen.print(f"{count:,} predictions in {out}", markup=False)


StudyFile = Annotated[Path, typer.Argument(help="YAML file of the study (docs/compare.md).")]
StudyFolder = Annotated[Path, typer.Option(help="Folder of its runs, DATA/SEED/MODEL, and of its results.")]
Seeds = Annotated[int | None, typer.Option(help="Seeds 0 to this, less one; as many as the study says unless told.")]
SomeData = Annotated[list[str] | None, typer.Option(help="Only this data set of the study; may be repeated.")]
SomeModels = Annotated[list[str] | None, typer.Option(help="Only this model, the reference, and what they begin with.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs trained at a time; they share the cores.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of every config.")]
Listed = Annotated[bool, typer.Option("--list", help="Train nothing: print a TorchX command for every run left.")]


@app.command()
def compare(
    study: StudyFile,
    out: StudyFolder,
    seeds: Seeds = None,
    data: SomeData = None,
    models: SomeModels = None,
    jobs: Jobs = 1,
    assign: Assign = None,
    tuned: Annotated[Path | None, typer.Option(help="tuned.json that `tune` wrote.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Compare with this model, not with the study's reference: OUT/results-NAME.*")
    ] = None,
    listed: Listed = False,
) -> None:
    """Compare models over data sets and seeds; what is finished is not trained again."""
    from torchrec_xd.study.design import load_study, load_tuned, select

    chosen = select(load_study(study, reference), data or (), models or (), seeds, tuple(assign or ()))
    name = "results" if reference is None else f"results-{reference}"
    _run_study(chosen, study, out, jobs, load_tuned(tuned) if tuned else None, listed, name)


@app.command()
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
    _run_study(chosen, study, out, jobs, None, listed)


@app.command()
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
    from torchrec_xd.study.design import load_study, select
    from torchrec_xd.study.tuning import tune as run_tune

    chosen = select(load_study(study), data or (), models or (), None, tuple(assign or ()))
    try:
        failed = run_tune(chosen, study, out, trials, workers=jobs)
    except InterruptedRunError as error:
        _stopped(error)
    for name, reason in failed.items():
        screen.print(f"failed: {name}: {reason}", markup=False)
    screen.print(f"settings in {out}/tuned.json", markup=False)


def _stopped(error: InterruptedRunError) -> NoReturn:
    screen.print(f"{error}; the same command goes on", style="yellow", markup=False)
    raise typer.Exit(EXIT_INTERRUPTED)


def _run_study(chosen: Any, path: Path, out: Path, jobs: int, tuned: Any, listed: bool, name: str = "results") -> None:
    from torchrec_xd.study.comparison import commands, run_study

    if listed:
        for line in commands(chosen, path, out, tuned):
            typer.echo(line)
        return
    try:
        failed = run_study(chosen, path, out, name, workers=jobs, tuned=tuned)
    except InterruptedRunError as error:
        _stopped(error)
    screen.print(f"results in {out}/{name}.md, .html and .json", markup=False)
    if failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise UserError(f"{len(failed)} runs failed; the same command tries them again:\n{told}")


def _tool(name: str, arguments: list[str]) -> None:
    """Run a tool of the project's folder, which parses its arguments itself."""
    import runpy

    root = Path(__file__).resolve().parents[1]
    if not (root / "tools").is_dir():
        raise UserError(f"{name} is a tool of the project's folder, and {root} has no tools/: install with -e")
    sys.path.insert(0, str(root))  # the installed command does not look there by itself
    sys.argv = [f"torchrec-xd {name}", *arguments]
    runpy.run_module(f"tools.{name}", run_name="__main__")


ANY_ARGUMENTS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


@app.command(**ANY_ARGUMENTS)
def plan(context: typer.Context) -> None:
    """Plan the sharding of a run or of a table list for any cluster; --help lists its options."""
    _tool("plan", context.args)


@app.command(**ANY_ARGUMENTS)
def benchmark(context: typer.Context) -> None:
    """Measure throughput: reader, lookup, step, train, scale, peers; --help lists them."""
    _tool("benchmark", context.args)


@app.command()
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


def main() -> None:
    """Run the command; what the user can mend is one screen of text and exit code 2, without a traceback."""
    debug = "--debug" in sys.argv[1:2]
    try:
        app()
    except UserError as error:
        if debug:
            raise
        Console(stderr=True, highlight=False).print(Text(f"error: {error}", "red"))
        sys.exit(EXIT_USER_ERROR)
    except InterruptedRunError as error:
        Console(stderr=True, highlight=False).print(Text(f"{error}; go on with --resume", "yellow"))
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
