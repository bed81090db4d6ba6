"""The one place where errors of commands end: a message on stderr and an exit code, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from torchrec_xd.errors import InterruptedRunError, UserError

EXIT_USER_ERROR = 2
"""Something the user can correct; the message explains what."""
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: the run was stopped, wrote a checkpoint, and can go on with --resume."""


def run_command(command: Callable[[], object]) -> None:
    """Call a command, and leave with its exit code.

    With `--debug` as the first argument, errors keep their traceback.
    """
    # OpenMP's threads by default spin for milliseconds while they wait for each other, and a machine with one more busy
    # process trains several times slower; 10,000 turns cost nothing on an idle one (docs/results/throughput_*.md). It
    # is read when torch is imported, which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        command()
    except UserError as error:
        if "--debug" in sys.argv[1:2]:
            raise
        fail(error)
    except InterruptedRunError as error:
        _say(str(error), "yellow")
        sys.exit(EXIT_INTERRUPTED)


def fail(error: UserError) -> NoReturn:
    """Print an error's message on stderr, and leave."""
    _say(f"error: {error}", "red")
    sys.exit(EXIT_USER_ERROR)


def _say(text: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style))
