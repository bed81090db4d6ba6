"""torchrun, with the exit code of the process that failed, and an end when its processes have ended.

    python -m torchrec_xd.distributed.elastic ARGUMENTS OF TORCHRUN

torchrun itself leaves with 1 whatever happened, so a scheduler could not tell an error of the user from an outage. And
where the network to the node of its store is gone, it waits for an answer until the kernel gives the connection up
(net.ipv4.tcp_retries2, by default after some 15 minutes), whatever became of its processes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from torchrec_xd.error_boundary import EXIT_INTERRUPTED, EXIT_USER_ERROR
from torchrec_xd.private_names import leave_at_once

STUCK_SECONDS = 10.0
"""torchrun looks at its processes ten times a second; where all have ended and it has not, it waits for the network."""


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns 2 where a process left with it, else the exit code of the one that failed first."""
    threading.Thread(target=_leave_when_stuck, daemon=True).start()
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        code = _exit_code(error.failures, error.get_first_failure()[0])
        if code not in (EXIT_USER_ERROR, EXIT_INTERRUPTED):  # these have told what they had to say
            _say(str(error))
        return code
    except SignalException:
        return EXIT_INTERRUPTED
    except RendezvousError as error:
        _say(f"torchrun does not reach the store on the first node of the job ({error}): look at what that node says")
        return EXIT_INTERRUPTED
    return 0


def _exit_code(failures: Mapping[int, Any], first: int) -> int:
    """128 + number where a signal ended the process, as shells have it."""
    if any(failure.exitcode == EXIT_USER_ERROR for failure in failures.values()):
        return EXIT_USER_ERROR
    code: int = failures[first].exitcode
    return code if code > 0 else 128 - code


def _leave_when_stuck() -> None:
    """Leave once all processes of this one have ended for long and were not looked after.

    While one still runs, torchrun may be waiting for it in good order: it asked them all to stop, and looks at the
    others after it.
    """
    this = psutil.Process()
    since = time.monotonic()
    while True:
        time.sleep(1)
        children = this.children()
        if not children or not all(map(_has_ended, children)):
            since = time.monotonic()
        elif time.monotonic() - since > STUCK_SECONDS:
            _say("torchrun hears nothing from the node where the job's store is: look at it and at the network")
            leave_at_once(EXIT_INTERRUPTED)


def _has_ended(child: psutil.Process) -> bool:
    try:
        return bool(child.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - torchrun's output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
