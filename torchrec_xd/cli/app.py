"""All commands in one application."""

from __future__ import annotations

from typing import Annotated

import typer

from torchrec_xd.cli import benchmark, config, plan
from torchrec_xd.cli.diagnose import diagnose
from torchrec_xd.cli.doctor import doctor
from torchrec_xd.cli.evaluate import evaluate
from torchrec_xd.cli.export import export
from torchrec_xd.cli.init import init
from torchrec_xd.cli.label import label
from torchrec_xd.cli.local_paths import local_paths
from torchrec_xd.cli.prepare import prepare
from torchrec_xd.cli.profile import profile
from torchrec_xd.cli.replay import replay
from torchrec_xd.cli.score import score
from torchrec_xd.cli.serve import serve
from torchrec_xd.cli.simulate import simulate
from torchrec_xd.cli.studies import ablate, compare, tune
from torchrec_xd.cli.train import train
from torchrec_xd.error_boundary import run_command

app = typer.Typer(
    help="Train cross-domain recommendation models on sharded embedding tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (init, prepare, profile, label, train, evaluate, score, export, serve, diagnose):
    app.command()(local_paths(command))
for study_command in (compare, ablate, tune, replay, simulate):
    app.command()(local_paths(study_command))
app.add_typer(plan.app, name="plan")
app.add_typer(config.app, name="config")
app.command(**benchmark.ANY_ARGUMENTS)(benchmark.benchmark)
app.command()(doctor)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command that the command line names."""
    run_command(lambda: app(prog_name="torchrec-xd"))  # however it was started
