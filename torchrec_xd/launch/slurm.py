"""The Slurm job that a process belongs to; outside of Slurm there is none, and nothing is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def seconds_left() -> float | None:
    """Seconds to the job's time limit; None where there is no job, or Slurm does not say."""
    told = _ask("squeue", "--noheader", "--format", "%e", "--job")
    end = next(iter(told.split()), "")  # a job on several nodes may have several lines, all with the same time
    return int(end) - time.time() if end.isdecimal() else None


def never_requeue() -> None:
    """Have Slurm leave the job as it is when it has failed: TorchX's script requeues whatever the exit code."""
    _ask("scontrol", "update", "Requeue=0", "JobId")


def _ask(program: str, *options: str) -> str:
    """What one of Slurm's programs answers about the job; its last option takes the job's number."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return ""
    command = [program, *options[:-1], f"{options[-1]}={job}"]
    seconds_since_1970 = {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(  # noqa: S603 - words of ours, and a number of Slurm's
            command, capture_output=True, text=True, check=False, env={**os.environ, **seconds_since_1970}
        )
    except OSError as error:  # a container without Slurm's programs
        print(f"{' '.join(command)}: {error}", file=sys.stderr)  # noqa: T201 - the task's output
        return ""
    sys.stderr.write(done.stderr)
    return done.stdout
