"""The processes of a run, and this one's place among them."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed.rendezvous import rendezvous

from torchrec_xd.distributed.device import own_device, refuse_shared_gpu
from torchrec_xd.distributed.memory import keep_freed_memory
from torchrec_xd.distributed.precision import arithmetic
from torchrec_xd.errors import OutageError, ReportedError, UserError
from torchrec_xd.settings import Settings

T = TypeVar("T")
_START = (
    "start several processes with torchrun, which sets all of these; for one process alone unset RANK and WORLD_SIZE"
)
LOOKUP_KERNELS = ("FBGEMM_FORCE_AUTOVEC", "FBGEMM_NO_AUTOVEC", "FBGEMM_NO_ASMJIT")
"""What chooses FBGEMM's kernels on CPU, each by being there. With the first one they fetch the rows of later ids ahead:
fp16 tables are looked up in a third of the time, and row-wise Adagrad on fp32 takes two thirds, as measured on an EPYC
(docs/decisions.md); vectors and weights are the same bits."""
_NETWORK = re.compile(
    r"Connection (closed|reset|refused|timed out)|(Socket|Remote peer) (unexpectedly )?closed|Broken pipe"
    r"|No route to host|(Network|Host) is (unreachable|down)|network error|connectFullMesh failed"
    r"|(gloo|NCCL|TCPStore|Connect|Read|Socket|pair\.cc|buffer\.cc).*([Tt]imed out|[Tt]imeout)"
    r"|Application timeout caused pair closure"
)
"""In what torch says of connections that fail, mostly as a plain RuntimeError. A mismatch of collectives, a wrong use
and an error of a GPU have other texts, and come from gloo and NCCL too."""


class ProcessSettings(Settings):
    """What a run changes in its process."""

    threads: int = Field(default=0, ge=0, le=4096)
    """CPU threads per process; 0 leaves the choice to torch."""
    timeout_s: int = Field(default=600, ge=1, le=6_000_000)
    """Seconds that processes wait for each other, at the start and in every exchange, before the run ends with exit
    code 75. More where one of them is busy for longer, for example with slow storage; less to notice sooner that one
    hangs or that the network is gone (the kernel alone takes some 15 minutes)."""
    keep_freed_memory: bool = True
    """Have glibc keep what is freed, in huge pages, for as long as the process lives: a step is 12 % faster on CPU.
    Without effect under other C libraries. (The command line also sets GOMP_SPINCOUNT, which only takes effect before
    torch is imported: see docs/python.md.)"""
    tf32: bool = True
    """On GPUs: multiply fp32 matrices in TF32 (10 bits of mantissa, sums in fp32), several times as fast on an A100 or
    later. Tables, losses and optimizers stay fp32."""
    deterministic: bool = False
    """On GPUs: take algorithms that give the same bits every time, so that a run repeats and resumes exactly. Slower:
    the tables' backward pass adds up the gradients of a frequent id without atomic additions. On CPU runs always
    repeat, for a given number of processes and threads."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and this one's place among them."""

    rank: int
    size: int
    local_size: int
    """Processes on this machine."""
    device: torch.device
    group: dist.ProcessGroup
    threads: int
    """CPU threads of this process."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes what all agree on."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.group)

    def broadcast_object(self, value: T | None) -> T:
        """The value of rank 0, on all ranks (a collective); the others pass None."""
        values = [value]
        dist.broadcast_object_list(values, 0, self.group)
        assert values[0] is not None
        return values[0]

    def on_main(self, action: Callable[[], T]) -> T:
        """What rank 0 gets by doing something, on all ranks (a collective).

        Raises:
            ReportedError: on all ranks, where rank 0 raised one: the same.
        """
        found: tuple[T | None, ReportedError | None] = (None, None)
        if self.is_main_process:
            try:
                found = (action(), None)
            except ReportedError as error:
                found = (None, error)
        value, problem = self.broadcast_object(found)
        if problem is not None:
            raise problem
        return cast(T, value)

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on all ranks (a collective)."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, self.group)
        return cast(list[T], values)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (a collective)."""
        return self.all_reduce_min(int(not flag)) == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all ranks of a tensor on the device, without a gradient (a collective)."""
        mean = values.detach() / self.size
        dist.all_reduce(mean, group=self.group)
        return mean

    def all_reduce_min(self, value: int) -> int:
        """The smallest value of all ranks (a collective)."""
        reduced = torch.tensor(value, device=self.device)
        dist.all_reduce(reduced, dist.ReduceOp.MIN, self.group)
        return int(reduced.item())


def seed_generators(*key: int) -> None:
    """Seed torch's generators, of CPU and GPUs, by what is in `key`: seed, rank, step."""
    # 32 bits, as the CPU's generator drops the upper half of a longer seed.
    torch.manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


@contextmanager
def process_group(settings: ProcessSettings | None = None) -> Iterator[Processes]:
    """The process group that torchrun described in the environment, or one of this process alone.

    Threads are as before when the block ends. An error that leaves the block on several ranks is reported by one.

    Raises:
        UserError: the environment describes half a group, or there are more processes than GPUs.
        OutageError: another process was not heard of any more.
    """
    settings = settings or ProcessSettings()
    rank, size, local_rank, local_size = _launched()
    with _outages(rank, size, settings.timeout_s), _joined(settings, rank, size, local_rank, local_size) as processes:
        yield processes


@contextmanager
def _joined(settings: ProcessSettings, rank: int, size: int, local_rank: int, local_size: int) -> Iterator[Processes]:
    device = own_device(local_rank, local_size)
    if settings.keep_freed_memory:
        keep_freed_memory()
    threads = torch.get_num_threads()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    elif not any(name in os.environ for name in LOOKUP_KERNELS):
        os.environ[LOOKUP_KERNELS[0]] = "1"  # FBGEMM asks for it at the first lookup of the process
    if size == local_size and any(n == "lo" for _, n in socket.if_nameindex()):
        # All processes are on this machine: gloo's sockets need not be reachable from outside.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=settings.timeout_s)
    store = next(iter(rendezvous("env://", timeout=timeout)))[0] if size > 1 else dist.HashStore()  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    if cuda and size > 1:
        refuse_shared_gpu(store, rank, device)
    backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
    own = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
    # Bound to its GPU, NCCL connects now and not in the first exchange, so that what is wrong with it shows here.
    bound = device if cuda else None
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout, device_id=bound)
    assert dist.group.WORLD is not None
    try:
        with arithmetic(device, tf32=settings.tf32, deterministic=settings.deterministic):
            yield Processes(rank, size, local_size, device, dist.group.WORLD, torch.get_num_threads())
    except ReportedError as error:
        error.told = _told(store, str(error))
        raise
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


@contextmanager
def _outages(rank: int, size: int, timeout_s: int) -> Iterator[None]:
    """Errors of the network are reported, by every rank that has one: where it is cut, none knows of the others."""
    try:
        yield
    except RuntimeError as error:
        if size == 1 or not (
            isinstance(error, dist.DistNetworkError | dist.DistStoreError) or _NETWORK.search(str(error))
        ):
            raise
        outage = OutageError(_outage(str(error), rank, size, timeout_s))
        outage.told = False
        raise outage from error


def _outage(error: str, rank: int, size: int, timeout_s: int) -> str:
    """What is known of an outage, where to look, and what to set."""
    here = f"rank {rank} of {size}, on {socket.gethostname()},"
    if "imed out" in error or "imeout" in error:
        return (
            f"{here} waited {timeout_s} s (trainer.timeout_s) for the other processes in vain: one of them hangs, or "
            "the network between their nodes is gone. Look at the nodes and ranks that do not say this; raise "
            "trainer.timeout_s if one was only busy. Started again, the run goes on from its last checkpoint"
        )
    return (
        f"{here} lost its connection to another process: that has ended, or the network to its node is gone. Look at "
        "what the other ranks say, and at their nodes. Started again, the run goes on from its last checkpoint"
    )


def _launched() -> tuple[int, int, int, int]:
    """Rank, world size, rank and size on this machine, as torchrun writes them into the environment."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return 0, 1, 0, 1
    found = {}
    for name, otherwise in {"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        value = os.environ.get(name, otherwise)
        if value is None or not value.isdecimal():
            raise UserError(f"{name} {'is not set' if value is None else f'is {value!r}, no number'}; {_START}")
        found[name] = int(value)
    rank, size, local_rank, local_size = found.values()
    if rank >= size or local_rank >= local_size > 1:
        raise UserError(f"{', '.join(f'{name}={value}' for name, value in found.items())}: no such rank; {_START}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if size > 1 and not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, and {' and '.join(missing)} missing from the environment; {_START}")
    return rank, size, local_rank, local_size


def _told(store: Any, text: str) -> bool:
    """Whether another rank has reported this already."""
    try:
        return int(store.add(f"told/{zlib.crc32(text.encode())}", 1)) > 1
    except RuntimeError:  # the process that kept the store has ended
        return False
