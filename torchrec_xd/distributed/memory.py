"""Memory of a process: how much it held, and how glibc is to keep what is freed."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
"""Names of the C library, from malloc.h and mman.h."""
HUGE_PAGES = 4 << 30
"""Bytes of addresses, not of memory, that are to be backed by huge pages."""


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
