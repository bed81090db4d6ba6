"""The commands of the benchmark."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from torchrec_xd.benchmark.history import history
from torchrec_xd.benchmark.large import large
from torchrec_xd.benchmark.lookup import lookup
from torchrec_xd.benchmark.measure import screen
from torchrec_xd.benchmark.peers import peers
from torchrec_xd.benchmark.plain import plain
from torchrec_xd.benchmark.reading import reader, train
from torchrec_xd.benchmark.report import report
from torchrec_xd.benchmark.scale import scale
from torchrec_xd.benchmark.step import counts, step
from torchrec_xd.errors import UserError

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
