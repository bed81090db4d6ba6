"""The commands of the benchmark."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from tools.benchmark.history import history
from tools.benchmark.large import large
from tools.benchmark.lookup import lookup
from tools.benchmark.measure import screen
from tools.benchmark.peers import peers
from tools.benchmark.plain import plain
from tools.benchmark.reading import reader, train
from tools.benchmark.report import report
from tools.benchmark.scale import scale
from tools.benchmark.step import counts, step
from torchrec_xd.settings import UserError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (reader, lookup, step, train, scale, large, plain, peers, counts, history, report):
    app.command()(command)


def main() -> None:
    """Run a command; what the user can mend is one screen of text and exit code 2."""
    try:
        app()
    except UserError as error:
        screen.print(Text(f"error: {error}", "red"))
        sys.exit(2)


if __name__ == "__main__":
    main()
