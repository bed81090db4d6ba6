"""Jobs, several at a time, each in its own process: one that dies does not affect the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Generic, TypeVar

import torch

from torchrec_xd.errors import InterruptedRunError
from torchrec_xd.study.worker import Job, run_job

JobT = TypeVar("JobT", bound=Job)


class _Running(Generic[JobT]):
    """A job under way."""

    def __init__(self, context: ForkServerContext | SpawnContext, job: JobT, threads: int, log: Path) -> None:
        self.job, self.log = job, log
        self._answer, answer = context.Pipe(duplex=False)
        self.process = context.Process(target=run_job, args=(job, threads, log, answer), name=job.name)
        self.process.start()
        answer.close()

    def fault(self) -> str | None:
        """What went wrong, if anything did; waits for the process to end.

        Raises:
            InterruptedRunError: it was asked to stop, and wrote a checkpoint.
        """
        try:
            found: str | None = self._answer.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            if code == 0:
                raise InterruptedRunError(f"{self.job.name} was stopped") from None
            return f"its process died with exit code {code} (out of memory? killed?), see {self.log}"
        self.process.join()
        return found


def work(
    take: Callable[[], JobT | None], finish: Callable[[JobT, str | None], None], *, workers: int, logs: Path
) -> None:
    """Work off jobs, so many at a time; they share the machine's cores.

    Args:
        take: the next job that can begin; None where there is none, or none before another one has finished.
        finish: called with every job that ended, and the reason if it failed.
        workers: jobs at a time.
        logs: folder for the output of their processes that is not in the runs' own logs.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM was received; runs that were being trained wrote a checkpoint.
    """
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    free = [logs / f"worker{place}.txt" for place in reversed(range(workers))]
    running: list[_Running[JobT]] = []
    with process_context(threads, run_job.__module__) as context, _interruptible(running):
        while True:
            while free and (job := take()) is not None:
                running.append(_Running(context, job, threads, free.pop()))
            if not running:
                return
            ended = wait([one.process.sentinel for one in running])
            for one in [one for one in running if one.process.sentinel in ended]:
                fault = one.fault()
                running.remove(one)
                free.append(one.log)
                finish(one.job, fault)


@contextmanager
def process_context(threads: int, module: str) -> Iterator[ForkServerContext | SpawnContext]:
    """How processes begin: forked from a server that has imported torch once, which takes seconds.

    Not on a GPU: CUDA does not survive a fork, if some import has looked for devices.

    Args:
        threads: CPU threads of a process.
        module: imported once, for all processes.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the server's imports: numpy and Arrow ask for it then
    try:
        if torch.cuda.is_available():
            yield multiprocessing.get_context("spawn")
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([module])
            yield context
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _interruptible(running: list[_Running[JobT]]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, which schedulers send, ask what is running to stop, and wait for its checkpoints."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (KeyboardInterrupt, InterruptedRunError):
        raise InterruptedRunError(f"stopped while {len(running)} runs were being trained") from None
    finally:
        signal.signal(signal.SIGTERM, before)
        for one in running:
            one.process.terminate()  # the trainer writes a checkpoint and stops
        for one in running:
            one.process.join()
