"""A run on two machines whose wire is cut again and again: `python -m tools.chaos CONFIG --partition`.

A cut of a few seconds must go unnoticed. One for good must end every process within the time-out and half a minute,
with an exit code that schedulers retry; the run is then started again, on a wire that is in order.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.two_machines import TwoMachines
from torchrec_xd.error_boundary import EXIT_INTERRUPTED
from torchrec_xd.errors import UserError

TIMEOUT_S = 15
"""trainer.timeout_s of the runs."""
ENDS_WITHIN = TIMEOUT_S + 30
SHORT_CUT = 5.0
LAST_CUT = 0.8
"""Share of the steps after which no cut is due any more."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Cut:
    """When the wire is cut, and for how long."""

    after: float
    """Share of the run's steps that a checkpoint must hold by then."""
    seconds: float | None
    """None: for good."""


def schedule(cuts: int, seed: int) -> list[Cut]:
    """Cuts in the order of the run, drawn by `seed`; short ones and those for good take turns."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    afters = sorted(draw.uniform(0, LAST_CUT) for _ in range(cuts))
    return [Cut(after, None if number % 2 else SHORT_CUT) for number, after in enumerate(afters)]


class TwoNodeJob:
    """A run on both machines, seen from outside; `log` of each has what its processes say."""

    def __init__(self, machines: TwoMachines, train: list[str], run: Path, processes: int, patience: float) -> None:
        self.machines, self.run, self.patience = machines, run, patience
        command = ["torchrec_xd.cli", *train, "--run-dir", str(run), "--restartable"]
        command += ["--set", f"trainer.timeout_s={TIMEOUT_S}"]
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "LOGLEVEL": "WARNING"}
        self.logs = [run.with_name(f"{run.name}.machine{machine}.log") for machine in (0, 1)]
        self.agents = []
        for machine, log in enumerate(self.logs):
            with log.open("ab") as output:
                words = machines.torchrun(machine, processes // 2, command)
                self.agents.append(
                    subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True, env=environment)
                )

    def saved(self) -> int:
        """Step of the last checkpoint."""
        return max((int(path.name[5:]) for path in (self.run / "checkpoints").glob("step_*")), default=0)

    def codes(self) -> list[int | None]:
        """The exit codes of both machines; None for one that runs."""
        return [agent.poll() for agent in self.agents]

    def wait(self, condition: Callable[[], bool], within: float, what: str) -> float:
        """The seconds until the condition held.

        Raises:
            UserError: it did not within so many seconds, or the job ended before.
        """
        began = time.monotonic()
        while not condition():
            waited, ended = time.monotonic() - began, None not in self.codes()
            if waited > within or ended:
                state = f"ended with {self.codes()}" if ended else f"still runs after {waited:.0f} s"
                raise UserError(f"{self.run.name}: {state}, {what}; see {' and '.join(map(str, self.logs))}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def finish(self) -> None:
        """Wait for a good end."""
        self.wait(lambda: self.codes() == [0, 0], self.patience, "where it should have ended well")


@contextmanager
def started(
    machines: TwoMachines, train: list[str], run: Path, processes: int, patience: float
) -> Iterator[TwoNodeJob]:
    """A job that trains into `run`; nothing of it is left afterwards."""
    job = TwoNodeJob(machines, train, run, processes, patience)
    try:
        yield job
    finally:
        machines.end()
        for agent in job.agents:
            agent.wait()


def strike(job: TwoNodeJob, cut: Cut, steps: int) -> dict[str, Any]:
    """Cut the wire once, wait for what has to follow, and mend it.

    Raises:
        UserError: the job ended where it should have gone on, or did not end within the time-out and half a minute, or
            with another exit code than 75.
    """
    job.wait(lambda: job.saved() >= max(1, cut.after * steps), job.patience, "before the cut")
    step = job.saved()
    job.machines.cut()
    try:
        if cut.seconds is not None:
            time.sleep(cut.seconds)
            return {"cut_s": cut.seconds, "after_step": step}
        took = job.wait(lambda: None not in job.codes(), ENDS_WITHIN, "after the cut")
    finally:
        job.machines.mend()
    if job.codes() != [EXIT_INTERRUPTED] * 2:
        raise UserError(f"{job.run.name}: ended with {job.codes()} after the cut, not with 75; see {job.logs[0]}")
    return {"cut_s": None, "after_step": step, "ended_after_s": round(took, 1)}


def disturbed(
    start: Callable[[], AbstractContextManager[TwoNodeJob]], cuts: list[Cut], steps: int
) -> list[dict[str, Any]]:
    """Train to the end over a wire that is cut by schedule; returns what was done, and how long it took to end."""
    happened, left = [], list(cuts)
    while True:
        with start() as job:
            while left:
                cut = left.pop(0)
                happened.append(strike(job, cut, steps))
                if cut.seconds is None:
                    break
            else:
                job.finish()
                return happened
