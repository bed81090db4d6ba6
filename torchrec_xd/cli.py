"""The command `torchrec-xd`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_xd.settings import InterruptedRunError, UserError

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
    name: Annotated[str, typer.Argument(help="Data set: cj_feed, cj_departments, cj_placement.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; data/NAME unless told.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with prepare settings.")] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE on top of the settings.")] = None,
    engine: Annotated[Literal["duckdb", "spark"] | None, typer.Option(help="What runs the queries.")] = None,
) -> None:
    """Write a data set as Parquet, from the real events, once."""
    from torchrec_xd.prepare import PrepareSettings
    from torchrec_xd.prepare import prepare as run_prepare
    from torchrec_xd.settings import load_yaml, override, validate

    content = override(
        load_yaml(config) if config else {}, [*(assign or []), *([f"engine={engine}"] if engine else [])]
    )
    settings = validate(PrepareSettings, content, str(config or "--set"))
    run_prepare(name, out or Path("data") / name, settings, lambda line: screen.print(line, markup=False))


@app.command()
def label(
    config: Annotated[Path, typer.Argument(help="YAML file: logs, columns, label settings (docs/data.md).")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of the config.")] = None,
) -> None:
    """Add EXIT's interest combination labels to any exposures, from logs of actions."""
    from torchrec_xd.prepare import LabelStepSettings
    from torchrec_xd.prepare import label as run_label
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
    from torchrec_xd.run import train as run_train

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

    from torchrec_xd.run import evaluate_run

    report = evaluate_run(run, split, checkpoint, page)
    if os.environ.get("RANK", "0") != "0":
        return
    if out is not None:
        out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    screen.print(metric_table(report, f"{run}: {split}"))


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
    from torchrec_xd.run import score as run_score

    count = run_score(run, rows, out, domain, checkpoint, parts=parts)
    screen.print(f"{count:,} predictions in {out}", markup=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def plan(context: typer.Context) -> None:
    """Plan the sharding of a run or of a table list for any cluster; --help lists its options."""
    import runpy

    root = Path(__file__).resolve().parents[1]
    if not (root / "tools" / "plan.py").is_file():
        raise UserError(f"plan is a tool of the project's folder, and {root} has no tools/plan.py: install with -e")
    sys.path.insert(0, str(root))  # the installed command does not look there by itself
    sys.argv = ["torchrec-xd plan", *context.args]
    runpy.run_module("tools.plan", run_name="__main__")


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
