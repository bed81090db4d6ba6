"""Run a function on several gloo ranks, each a real process on this machine."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

IMPORTED_ONCE = ["torchrec_xd.training.train_run"]
"""Ranks are forked from a process that has imported this and nothing else, as importing takes seconds."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Call `function(rank, *args)` on every rank inside an initialised process group; return their values by rank.

    Args:
        world_size: number of ranks.
        function: importable by name (top level of a module), as are the types of its arguments and value.
        args: pickled and sent to every rank.
        timeout: seconds for everything, the start of the processes included.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank raised; carries its traceback. Tracebacks of all ranks are
            on standard error, as one rank's failure makes others fail in their collectives.
        TimeoutError: ranks still ran after `timeout`; where they stood is on standard error.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
        started = mp.start_processes(
            _run_rank,
            (world_size, folder, timeout, dict(os.environ), (function, args)),
            world_size,
            join=False,
            start_method="forkserver",
        )
        try:
            while not started.join(timeout=max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{function.__name__} on {world_size} ranks took more than {timeout} s")
        finally:
            for process in started.processes:
                process.kill()
                process.join()
            for rank in range(world_size):
                written = Path(folder, f"{rank}.stderr")
                sys.stderr.write(written.read_text(encoding="utf-8") if written.exists() else "")
        return [pickle.loads(_outcome(folder, rank).read_bytes()) for rank in range(world_size)]


def _run_rank(
    rank: int,
    world_size: int,
    folder: str,
    timeout: float,
    environment: dict[str, str],
    call: tuple[Callable[..., Any], tuple[Any, ...]],
) -> None:
    os.environ.clear()  # those of the server that this process was forked from may be older
    os.environ.update(environment)
    with Path(folder, f"{rank}.stderr").open("w", encoding="utf-8") as ours:
        os.dup2(ours.fileno(), 2)  # the server's own may have been another test's
    faulthandler.dump_traceback_later(0.9 * timeout)
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=timeout), world_size, rank)
    function, args = call
    try:
        value = function(rank, *args)
    except BaseException:
        traceback.print_exc()
        raise
    dist.barrier()  # a rank that leaves early would break the connections that others still read from
    dist.destroy_process_group()
    _outcome(folder, rank).write_bytes(pickle.dumps(value))


def _outcome(folder: str, rank: int) -> Path:
    return Path(folder, f"{rank}.pickle")
