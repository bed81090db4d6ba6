"""Run commands one after the other; a failure ends it.

    python -m torchrec_xd.launch.stages --stop-before SECONDS COMMAND ... --then COMMAND ...

A shell's `&&` would do but for stop requests: as the first process of a container a shell ignores SIGTERM, and
elsewhere it dies of it and leaves its child behind. Here the running command receives the signal once, as it has
its own session, and is waited for: it may have a checkpoint to write.

In a Slurm job the commands are asked to stop SECONDS before its time limit (0: never), so that they have written their
checkpoint, and the batch script can still requeue the job. An error of the user is not requeued.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby

from torchrec_xd.error_boundary import EXIT_USER_ERROR, fail
from torchrec_xd.errors import UserError
from torchrec_xd.launch import slurm

SEPARATOR = "--then"
STOP_BEFORE = "--stop-before"


def run(commands: Sequence[Sequence[str]], stop_before: int = 0) -> int:
    """Exit code of the first command that fails, else 0; 128 + number where a signal ended it, as shells have it.

    Raises:
        UserError: the time limit of the Slurm job comes before its stop request.
    """
    received: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)

    def stop(*_: object) -> None:
        _say(f"{stop_before} s to the time limit of this job (--stop_before): it is asked to stop, and then requeued")
        pass_on(signal.SIGTERM, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    left = slurm.seconds_left() if stop_before else None
    if left is not None:
        if left <= stop_before:
            raise UserError(
                f"--stop_before {stop_before}: the time limit of this job is in {left:.0f} s, so it would be asked to "
                "stop before it began; ask for more time (-cfg time=...), or stop later"
            )
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, left - stop_before)
    for command in commands:
        if received:
            return 128 + received[0]
        running[:] = [subprocess.Popen(command, start_new_session=True)]  # noqa: S603 - what the component wrote
        for asked in received:  # while the command was being started
            running[0].send_signal(asked)
        code = running[0].wait()
        if code:
            return code if code > 0 else 128 - code
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the commands between the separators; returns the exit code."""
    stop_before = 0
    if arguments[:1] == [STOP_BEFORE]:
        stop_before, arguments = int(arguments[1]), arguments[2:]
    try:
        code = run(
            [list(words) for kept, words in groupby(arguments, lambda word: word != SEPARATOR) if kept], stop_before
        )
    except UserError as error:
        slurm.never_requeue()
        fail(error)
    if code == EXIT_USER_ERROR:
        slurm.never_requeue()
    return code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the task's output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
