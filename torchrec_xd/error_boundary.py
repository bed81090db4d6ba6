"""The one place where errors of commands end: a message on stderr and an exit code, no traceback."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from torchrec_xd.errors import InterruptedRunError, OutageError, ReportedError, UserError
from torchrec_xd.given_paths import masked

EXIT_USER_ERROR = 2
"""Something the user can correct; the message explains what."""
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: the run was stopped and wrote a checkpoint, or an outage of a store or the network ended it. It can
go on with --resume, and schedulers may start the job again."""
OTHERS_SECONDS = 3.0
"""What a process that has nothing to say leaves to the one that reports an error."""
_CORRECTABLE = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Files that cannot be written: full disks, folders of others."""


def run_command(command: Callable[[], object]) -> None:
    """Call a command, and leave with its exit code.

    With `--debug` as the first argument, errors keep their traceback.
    """
    # OpenMP's threads by default spin for milliseconds while they wait for each other, and a machine with one more busy
    # process trains several times slower; 10,000 turns cost nothing on an idle one (docs/results/throughput_*.md). It
    # is read when torch is imported, which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler notes every start and stop on the screen
    try:
        command()
    except ReportedError as error:
        if "--debug" in sys.argv[1:2]:
            raise
        fail(error)
    except OSError as error:
        if "--debug" in sys.argv[1:2] or error.errno not in _CORRECTABLE:
            raise
        failed = UserError(f"{error}; make room, or name another place")
        failed.told = False  # other processes may well write where they are
        fail(failed)


def fail(error: ReportedError) -> NoReturn:
    """Print an error's message on stderr, unless another process does, and leave."""
    told = error.told if error.told is not None else _is_further_process()
    if told:
        time.sleep(OTHERS_SECONDS)  # torchrun ends all processes when one has ended
    elif isinstance(error, InterruptedRunError):
        _say(str(error), "yellow")
    else:
        _say(f"error: {error}", "red")
    sys.exit(EXIT_INTERRUPTED if isinstance(error, InterruptedRunError | OutageError) else EXIT_USER_ERROR)


def _is_further_process() -> bool:
    """Whether this is a process of a group and not the first one on its machine."""
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("LOCAL_RANK", "")
    return "RANK" in os.environ and size.isdecimal() and int(size) > 1 and rank.isdecimal() and int(rank) > 0


def _say(text: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(masked(text), style))
