"""Run commands one after the other; a failure ends it.

    python -m torchrec_xd.launch.stages COMMAND ... --then COMMAND ...

A shell's `&&` would do but for stop requests: as the first process of a container a shell ignores SIGTERM, and
elsewhere it dies of it and leaves its child behind. Here the running command receives the signal once, as it has
its own session, and is waited for: it may have a checkpoint to write.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby

SEPARATOR = "--then"


def run(commands: Sequence[Sequence[str]]) -> int:
    """Exit code of the first command that fails, else 0; 128 + number where a signal ended it, as shells have it."""
    received: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
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
    return run([list(words) for kept, words in groupby(arguments, lambda word: word != SEPARATOR) if kept])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
