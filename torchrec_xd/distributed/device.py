"""The device of a process: a GPU of its own where there are GPUs, else the CPU."""

from __future__ import annotations

import os
from typing import Any

import torch

from torchrec_xd.errors import UserError


def own_device(local_rank: int, local_size: int) -> torch.device:
    """The device of the process with this rank among `local_size` on its machine.

    Where one GPU is visible it is number 0, whatever the rank: some launchers (Slurm with `--gpus-per-task=1`) show
    every process its own GPU alone. `refuse_shared_gpu` finds the case that it is the same one for all.

    Raises:
        UserError: several GPUs are visible, and fewer than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus, processes = torch.cuda.device_count(), max(local_size, local_rank + 1)
    if 1 < gpus < processes:
        raise UserError(f"{processes} processes on this machine, but {gpus} GPUs are visible to each{_rule(gpus)}")
    return torch.device("cuda", local_rank if gpus > 1 else 0)


def refuse_shared_gpu(store: Any, rank: int, device: torch.device) -> None:
    """Refuse a GPU that another process of the group has taken, which NCCL could not work with.

    Args:
        store: what all processes of the group see; holds the rank that uses a GPU, by the GPU's UUID.
        rank: of this process.
        device: its GPU.

    Raises:
        UserError: in all processes that share a GPU but the first one.
    """
    gpu = torch.cuda.get_device_properties(device)
    owner = int(store.compare_set(f"gpu/{gpu.uuid}", "", str(rank)))
    if owner != rank:
        error = UserError(
            f"processes {owner} and {rank} would use the same GPU ({gpu.name}, {gpu.uuid})"
            f"{_rule(torch.cuda.device_count())}"
        )
        error.told = int(store.add("gpus shared", 1)) > 1  # one of them says so
        raise error


def _rule(gpus: int) -> str:
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    found = ", ".join(f"{name}={os.environ[name]}" if name in os.environ else f"{name} not set" for name in names)
    return (
        f" ({found}): every process needs a GPU of its own. Start at most {gpus} on a machine (torchrun "
        f"--nproc-per-node {gpus}; TorchX: -j NODESx{gpus} --gpu {gpus}), make more GPUs visible, or set "
        "CUDA_VISIBLE_DEVICES to nothing to train on CPUs"
    )
