"""What torch's profiler sees of some steps, on a CPU or a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity


@dataclass(frozen=True)
class Profile:
    """Where the time of some steps went."""

    steps: int
    spent: dict[str, float] = field(default_factory=dict)
    """Microseconds of all steps by operator: its own on the CPU; on a GPU those of the kernels that it started."""
    kernels: int = 0
    """That all steps started on the GPU, without copies and fills; 0 on a CPU."""
    busy: float = 0.0
    """Microseconds of all steps in which the GPU did at least one thing; 0 on a CPU."""


def profiled(run: Callable[[], object], steps: int, device: torch.device, rounds: int = 6) -> Profile:
    """What a call of `run` does, which takes so many steps; of the quickest of some rounds.

    The profiler's notes come to lie among the tensors, so that those are put into fresh memory, which costs more than
    all operators together, until the notes of earlier rounds have left enough room.
    """
    gpu, found = device.type == "cuda", []
    for _ in range(rounds):
        if gpu:
            torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities(device)) as profiler:
            run()
            if gpu:
                torch.cuda.synchronize()
        found.append(profile_of(profiler.events(), steps, gpu=gpu))
    return min(found, key=lambda profile: sum(profile.spent.values()))


def activities(device: torch.device) -> list[ProfilerActivity]:
    """What there is to profile on a device."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def profile_of(events: Iterable[Any], steps: int, *, gpu: bool) -> Profile:
    """The profiler's events of so many steps, added up."""
    spent: Counter[str] = Counter()
    on_gpu = []
    for event in events:
        if event.device_type.name == "CPU":
            spent[event.key] += event.self_device_time_total if gpu else event.self_cpu_time_total
        elif not event.is_user_annotation:
            on_gpu.append(event)
    kernels = [event for event in on_gpu if not event.key.startswith(("Memcpy", "Memset"))]
    busy = _covered((event.time_range.start, event.time_range.end) for event in on_gpu)
    return Profile(steps, {name: time for name, time in spent.items() if time or not gpu}, len(kernels), busy)


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much time lies in at least one interval: kernels of several streams run at the same time."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
