"""The processes of a run, and this one's place among them."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
"""Names of the C library, from malloc.h and mman.h."""
HUGE_PAGES = 4 << 30
"""Bytes of addresses, not of memory, that are to be backed by huge pages."""


@dataclass(frozen=True)
class World:
    """The processes of this run, and this one's place among them."""

    rank: int
    size: int
    local_size: int
    """Processes on this machine."""
    device: torch.device
    group: dist.ProcessGroup

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what all agree on."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.group)

    def from_first(self, value: T | None) -> T:
        """What rank 0 holds, on all (a collective); the others pass None."""
        values = [value]
        dist.broadcast_object_list(values, 0, self.group)
        assert values[0] is not None
        return values[0]

    def gather(self, value: T) -> list[T]:
        """What every process holds, by rank, on all (a collective)."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, self.group)
        return cast(list[T], values)

    def any(self, flag: bool) -> bool:
        """Whether any process says yes (a collective)."""
        return self.least(int(not flag)) == 0

    def least(self, value: int) -> int:
        """The least that any process says (a collective)."""
        said = torch.tensor(value, device=self.device)
        dist.all_reduce(said, dist.ReduceOp.MIN, self.group)
        return int(said.item())


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on a GPU what torch allocated there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux's getrusage also counts what the process that started this one held by then.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found is not None:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bf16 faster than in fp32: a GPU that knows it, AMX or AVX-512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, and in huge pages: a step allocates the same tensors as the one before it.

    By default it returns large tensors to the system, which hands them back page by page, zeroed; and the processor
    looks up an address for every 4 KiB of them (docs/decisions.md). Other C libraries are left as they are.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    # Addresses that malloc gives away later; nothing is touched here, so no memory is used yet.
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(HUGE_PAGES)
    if block:  # else the system does not give away more addresses than it has memory
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, HUGE_PAGES - mmap.PAGESIZE, MADV_HUGEPAGE)
        libc.free(block)


@contextmanager
def process_group() -> Iterator[World]:
    """The process group that torchrun described in the environment, or one of this process alone."""
    keep_freed_memory()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size == local_size and any(n == "lo" for _, n in socket.if_nameindex()):
        # All processes are on this machine: gloo's sockets need not be reachable from outside.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
    if size > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    try:
        yield World(dist.get_rank(), size, local_size, device, dist.group.WORLD)
    finally:
        dist.destroy_process_group()
