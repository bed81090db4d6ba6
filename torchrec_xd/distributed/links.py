"""Measures how fast processes of this machine exchange tensors over gloo."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

BYTES = 16 * 2**20
"""Of one exchange, per process."""
REPEATS = 10
"""Exchanges of each kind; the median counts."""
TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Links:
    """Bandwidths per process, GiB/s: bytes that it sends to others, over the time that the exchange takes."""

    all_to_all_gib_s: float
    all_reduce_gib_s: float
    """Of a ring, in which each process sends all but its own part twice."""


def measure_links(processes: int) -> Links:
    """Start processes on this machine, of one thread each, and time their exchanges; takes some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_measure_in, (processes, folder), processes)  # type: ignore[no-untyped-call]
        return Links(**json.loads(Path(folder, "links.json").read_text(encoding="utf-8")))


def _measure_in(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", TIMEOUT, processes, rank)
    found = exchange_speeds()
    if rank == 0:
        Path(folder, "links.json").write_text(json.dumps(asdict(found)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def exchange_speeds(size: int = BYTES, repeats: int = REPEATS) -> Links:
    """Bandwidths of the process group that this process is in (a collective)."""
    sent, received = torch.zeros(size // 4), torch.empty(size // 4)
    share = (dist.get_world_size() - 1) / dist.get_world_size() * sent.numel() * sent.element_size() / 2**30
    to_all = _median(lambda: dist.all_to_all_single(received, sent), repeats)
    reduced = _median(lambda: dist.all_reduce(sent), repeats)
    return Links(share / to_all, 2 * share / reduced)


def _median(exchange: Callable[[], object], repeats: int) -> float:
    """Seconds; the first exchange opens connections."""
    took = []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.perf_counter()
        exchange()
        took.append(time.perf_counter() - began)
    return sorted(took[1:])[repeats // 2]
