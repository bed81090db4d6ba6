"""The process of one job: do it, and report what went wrong."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

from torchrec_xd.config import RunConfig
from torchrec_xd.errors import InterruptedRunError, OutageError, UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.training.inference import score
from torchrec_xd.training.train_run import train


class Job(Protocol):
    """What a process of its own does; it is sent there."""

    @property
    def name(self) -> str:
        """For messages, different from those of all others."""
        ...

    def run(self) -> None:
        """Do it; what was begun before goes on.

        Raises:
            InterruptedRunError: it was asked to stop, and wrote a checkpoint.
        """
        ...


@dataclass(frozen=True)
class CellJob:
    """A run to be trained, or to be gone on with, and scored where a task is named."""

    name: str
    config: RunConfig
    folder: Path
    task: str | None = None
    """Whose test rows are scored."""

    def run(self) -> None:
        """Train, and score."""
        train(self.config, self.folder, restartable=True)
        if self.task is not None:
            domain = self.task.partition("@")[2]
            score(self.folder, None, RunFolder(self.folder).scores, domain, "best", parts=True)


def run_job(job: Job, threads: int, log: Path, answer: Connection) -> None:
    """Send what went wrong, or None; nothing where the run was asked to stop and wrote a checkpoint.

    Ctrl-C reaches all processes of a terminal: here only the trainer listens to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with log.open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        job.run()
    except InterruptedRunError:
        return
    except (UserError, OutageError) as error:
        answer.send(str(error))
    except Exception as error:  # whatever it is, the other jobs go on, and it is reported at the end
        traceback.print_exc()
        answer.send(f"{type(error).__name__}: {error} (the traceback is in {log})")
    else:
        answer.send(None)
