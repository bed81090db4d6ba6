"""The dense part compiled to fewer, larger kernels: `trainer.compile`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.embeddings import Lookups
from torchrec_xd.errors import UserError
from torchrec_xd.models.model import Model
from torchrec_xd.private_names import compile_sizes_apart
from torchrec_xd.writable import check_output_folder

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_FOLDER = os.environ.get(_CACHE)
"""Where torch keeps kernels, as the user started this process; None: in the temporary folder."""
Compile = bool | Literal["auto"]
"""`auto`: where there is all that it needs."""


def refuse_missing_compiler(compiles: Compile, cache: Path | None, device: torch.device) -> None:
    """Refuse to compile where that cannot be.

    Args:
        compiles: `trainer.compile`.
        cache: `trainer.compile_cache`.
        device: that trains.

    Raises:
        UserError: what torch.compile needs is missing, or the folder cannot be written.
    """
    if compiles and cache is not None:
        check_output_folder(cache, "trainer.compile_cache")
    if compiles is True and (missing := _missing(device)):
        raise UserError(
            f"trainer.compile: true needs {missing} for {device.type}; install what is missing, or leave "
            "trainer.compile out: false computes the same, in more kernels"
        )


def not_compiled(compiles: Compile, processes: Processes) -> str:
    """Why `auto` does not compile, for the log; empty where it does, or is not set (a collective)."""
    if compiles != "auto":
        return ""
    found = [missing for missing in processes.all_gather_object(_missing(processes.device)) if missing]
    return f"trainer.compile: auto: not compiled: {found[0]} is missing" if found else ""


def _missing(device: torch.device) -> str:
    """What torch.compile needs and is not there; empty where all is."""
    names = (os.environ.get("CXX", "g++"),) if device.type == "cpu" else (os.environ.get("CC", "gcc"), "clang")
    missing = [] if any(map(shutil.which, names)) else [f"a compiler ({' or '.join(names)}) on PATH"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python's header files (Python.h)")
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    return " and ".join(missing)


def compile_net(model: Model, cache: Path | None = None, backend: str = "inductor") -> None:
    """Have training run the net, and a teacher's, compiled; evaluation runs them as they are.

    Modules stay the same objects, so that names of weights do not change. Tables and the loss are not compiled.

    Args:
        model: its nets are compiled when they are first used in training.
        cache: folder where kernels are kept for later runs. Default: torch's own.
        backend: of torch.compile.
    """
    os.environ.pop(_CACHE, None)
    if folder := _FOLDER if cache is None else str(cache.absolute()):
        os.environ[_CACHE] = folder
    torch.compiler.reset()  # what earlier runs of this process compiled counts against a limit
    compile_sizes_apart()
    nets = [model.net] if model.teacher is None else [model.net, model.teacher.net]
    for net in nets:
        net.forward = _Compiled(net, model.net, backend)


class _Compiled:
    """A net's forward: compiled where `trained` is in training mode, else as it is."""

    def __init__(self, net: nn.Module, trained: nn.Module, backend: str) -> None:
        self._plain, self._trained = net.forward, trained
        self._compiled = torch.compile(self._with_rows, backend=backend, dynamic=True)

    def __call__(self, lookups: Lookups, *taught: Any) -> Any:
        if not self._trained.training:
            return self._plain(lookups, *taught)
        domains = tuple(lookups.rows)
        ends = [own.stop for own in lookups.rows.values()]
        return self._compiled(lookups.groups, lookups.specific, lookups.sequences, domains, taught, *ends)

    def _with_rows(
        self, groups: Any, specific: Any, sequences: Any, domains: tuple[str, ...], taught: Any, *ends: int
    ) -> Any:
        """The ends of the domains' rows come as arguments of their own: torch.compile takes these for variable."""
        starts = (0, *ends[:-1])
        rows = {d: slice(start, end) for d, start, end in zip(domains, starts, ends, strict=True)}
        return self._plain(Lookups(groups, specific, sequences, rows), *taught)
