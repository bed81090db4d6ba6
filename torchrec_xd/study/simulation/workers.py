"""Processes that stay: each does one day of an arm after the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from torchrec_xd.errors import InterruptedRunError, UserError
from torchrec_xd.study.pool import process_context
from torchrec_xd.study.simulation.arm_days import ArmDay, run_arm_day


def work(
    take: Callable[[], ArmDay | None], finish: Callable[[ArmDay, str | None], None], *, workers: int, logs: Path
) -> None:
    """Work off days of arms, so many at a time, on one thread each.

    Args:
        take: the next day that can begin; None where there is none, or none before another one has finished.
        finish: called with every day that ended, and the reason if it failed.
        workers: days at a time.
        logs: folder for what the processes print.

    Raises:
        UserError: a process died.
        InterruptedRunError: SIGINT or SIGTERM was received; unfinished days are left as if they had not begun.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[Future[str | None], ArmDay] = {}
    with (
        process_context(1, run_arm_day.__module__) as context,
        ProcessPoolExecutor(workers, context, _begin, (logs,)) as pool,
        _interruptible(running),
    ):
        while True:
            while len(running) < workers and (job := take()) is not None:
                running[pool.submit(_do, job)] = job
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    fault = future.result()
                except BrokenProcessPool:
                    name = running[future].name
                    raise UserError(
                        f"a process died near {name} (out of memory? killed?), see {logs}; the same command goes on"
                    ) from None
                finish(running.pop(future), fault)


@contextmanager
def _interruptible(running: dict[Future[str | None], ArmDay]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM the processes are killed: a day is whole or not there."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.kill()
        raise InterruptedRunError(f"stopped with {len(running)} days of arms under way") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(logs: Path) -> None:
    """Ctrl-C reaches all processes of a terminal: here nobody listens; and what is printed goes into a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (logs / f"worker-{os.getpid()}.txt").open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _end_with_parent() -> None:
    """A process whose command was killed does not go on: the same command may have been started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _do(job: ArmDay) -> str | None:
    """Train and serve; returns what went wrong, if anything did."""
    try:
        run_arm_day(job)
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other arms go on, and it is reported at the end
        traceback.print_exc()
        return f"{type(error).__name__}: {error} (the traceback is in worker-{os.getpid()}.txt)"
    return None
