"""What a step of the check is given, and what it gives."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Machine:
    """Where a step runs."""

    device: torch.device
    folder: Path
    """For what it writes; another one for each step."""

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU. Without one, the same steps run on the CPU, smaller."""
        return self.device.type == "cuda"


class Found(NamedTuple):
    """What a step found."""

    ok: bool
    found: dict[str, Any]


class NeedsGpuError(Exception):
    """The step says nothing about a CPU."""


Step = Callable[[Machine], Found]


def run_step(step: Step, machine: Machine) -> dict[str, Any]:
    """A step's part of the report; what it raises is a finding, so that the others still run.

    `ok` is null where a step needs a GPU and there is none.
    """
    began = perf_counter()
    ok: bool | None
    try:
        ok, found = step(machine)
    except NeedsGpuError:
        ok, found = None, {"not run": "needs a GPU"}
    except Exception as error:  # whatever goes wrong is what this program looks for
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        ok, found = False, {"error": f"{type(error).__name__}: {error}"[:2000], "at": places[-6:]}
    return {"ok": ok, "seconds": round(perf_counter() - began, 2), "found": found}
