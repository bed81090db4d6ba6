"""The random generators of a rank: the CPU's, and that of the rank's own GPU.

On a GPU, dropout draws from torch's CUDA generator. So does FBGEMM where it rounds stochastically, which it does by
default, in every update of a table in fp16 or bf16, and where cached rows are written back to such a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from torchrec_xd.distributed.process_group import Processes, seed_generators

KINDS = ("rng", "cuda_rng")
"""What the generators of CPU and GPU are called in a checkpoint; then comes the rank."""


def generator_states(processes: Processes) -> dict[str, dict[str, Tensor]]:
    """The states of this rank's generators, by kind and rank: bytes, on the CPU."""
    rank, device = str(processes.rank), processes.device
    states = {"rng": {rank: torch.get_rng_state()}}
    if device.type == "cuda":
        states["cuda_rng"] = {rank: torch.cuda.get_rng_state(device)}
    return states


def held_states(
    processes: Processes, entries: Iterable[str], step: int, say: Callable[[str], None]
) -> dict[str, dict[str, Tensor]]:
    """Those of this rank's generators that a checkpoint of as many processes holds, to be filled from it.

    A message goes to `say` where it was written on another kind of device.

    Args:
        processes: the processes that resume.
        entries: the names of all that the checkpoint holds.
        step: of the checkpoint.
        say: takes the message.
    """
    found = {kind for kind in KINDS if f"{kind}.{processes.rank}" in set(entries)}
    wanted = generator_states(processes)
    begin = f"the checkpoint of step {step}"
    if "cuda_rng" in wanted.keys() - found:
        say(
            f"{begin} holds no random generator of a GPU (it was written on a CPU, or by version 0.2 or before): the "
            "GPU's starts anew, from seed, step and rank; training goes on, but not bit by bit"
        )
    elif "cuda_rng" in found - wanted.keys():
        say(
            f"{begin} was written on a GPU: dropout now draws from the CPU's random generator; training goes on, but "
            "not bit by bit"
        )
    return {kind: states for kind, states in wanted.items() if kind in found}


def restore_generators(processes: Processes, states: dict[str, dict[str, Tensor]], step: int) -> None:
    """Set this rank's generators: those in `states` to what is there, the others anew from seed, step and rank."""
    rank = str(processes.rank)
    seed_generators(torch.initial_seed(), step, processes.rank)
    if "rng" in states:
        torch.set_rng_state(states["rng"][rank])
    if "cuda_rng" in states:
        torch.cuda.set_rng_state(states["cuda_rng"][rank], processes.device)
