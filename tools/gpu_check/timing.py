"""How fast training is, what the GPU is busy with, and where the CPU waits for it."""

from __future__ import annotations

import json
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import torchrec_xd
from tools.gpu_check.step import Found, Machine, NeedsGpuError
from tools.gpu_check.trace import Trace, read_trace
from torchrec_xd.benchmark.profile import profiled
from torchrec_xd.benchmark.workbench import TOTAL_STEPS, Workbench, synthetic_run, workbench
from torchrec_xd.training.trainer import Step, train_steps

MODELS = ("mmoe", "mkt_pretrain", "exit", "din")
OWN = str(Path(torchrec_xd.__file__).parent)


@contextmanager
def bench_of(machine: Machine, model: str, batch: int) -> Iterator[Workbench]:
    """A warm model of the benchmark at the width of its paper; on a CPU with small tables."""
    with synthetic_run(model, 1_000_000 if machine.cuda else 1000, batch, "auto", "fp16") as config:
        pipelined = config.trainer.model_copy(update={"pipeline": True})
        with workbench(config.model_copy(update={"trainer": pipelined}), batches=2) as bench:
            yield bench


def trained(bench: Workbench, steps: int) -> Iterator[Step]:
    """So many steps as a run takes them, from files."""
    pin = bench.processes.device.type == "cuda"
    batches = bench.loader.batches(epochs=1_000_000, pin=pin)
    return islice(train_steps(bench.training, batches, 0, TOTAL_STEPS), steps)


def syncs(machine: Machine) -> Found:
    """Lines at which the CPU waits for the GPU; none of this package's may."""
    if not machine.cuda:
        raise NeedsGpuError
    found: dict[str, Any] = {}
    own = False
    for model in MODELS:
        with bench_of(machine, model, 1024) as bench:
            for _ in trained(bench, 3):
                pass  # what is made once
            with noted_syncs() as places:
                for _ in trained(bench, 10):
                    pass
        found[model] = {"in 10 steps": sum(places.values()), "at": dict(places.most_common(10))}
        own |= any(place.startswith("torchrec_xd") for place in places)
    return Found(not own, found)


@contextmanager
def noted_syncs() -> Iterator[Counter[str]]:
    """Where the CPU waits for the GPU inside the block: the line that does it, and our line that leads to it."""
    places: Counter[str] = Counter()

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OWN)]
            caller = f" from {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
            places["/".join(Path(filename).parts[-2:]) + f":{lineno}{caller}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def overlap(machine: Machine) -> Found:
    """Batches are copied from pinned memory, next to the computation and not in its way."""
    if not machine.cuda:
        raise NeedsGpuError
    found, ok = {}, True
    for model in MODELS:
        with bench_of(machine, model, 4096) as bench:
            trace = traced(machine, bench, 20)
        copies = trace.copies_to_device()
        ok &= bool(copies) and all(copy.pinned for copy in copies)
        ok &= not any(copy.stream == trace.compute_stream for copy in copies)
        found[model] = {
            "copies per step": len(copies) / 20,
            "from pinned memory": sum(copy.pinned for copy in copies) / max(len(copies), 1),
            "their time next to kernels": trace.hidden(copies),
        }
    return Found(ok, found)


def speed(machine: Machine) -> Found:
    """Rows per second on batches in memory, and what of the time the GPU is busy."""
    found = {}
    for model in MODELS:
        for batch in (4096, 32_768) if machine.cuda else (64,):
            with bench_of(machine, model, batch) as bench:
                steps = 20 if machine.cuda else 2
                rates = sorted(bench.speed(steps) for _ in range(3))
                entry: dict[str, Any] = {"rows/s": rates[1], "lowest": rates[0], "highest": rates[2]}
                if machine.cuda:
                    profile = profiled(partial(bench.run, steps), steps, machine.device, rounds=1)
                    entry |= {
                        "GPU busy": profile.busy / 1e6 / steps * rates[1] / (bench.rows * bench.processes.size),
                        "kernels per step": profile.kernels / steps,
                    }
            found[f"{model}, batch {batch}"] = entry
    return Found(True, found)


def reading(machine: Machine) -> Found:
    """Rows per second of the reader alone, and of training from it."""
    steps = 100 if machine.cuda else 5
    with bench_of(machine, "mmoe", 4096 if machine.cuda else 64) as bench:
        pin = machine.cuda
        alone = _rate(len(batch) for batch in islice(bench.loader.batches(epochs=1_000_000, pin=pin), steps))
        training = _rate(len(step.batch) for step in trained(bench, steps))
    return Found(True, {"reader alone, rows/s": alone, "training from files, rows/s": training})


def _rate(rows: Iterator[int]) -> float:
    began = perf_counter()
    total = sum(rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return total / (perf_counter() - began)


def traced(machine: Machine, bench: Workbench, steps: int) -> Trace:
    """When the GPU copies and computes in some steps of training from files."""
    for _ in trained(bench, 3):
        pass
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in trained(bench, steps):
            pass
        torch.cuda.synchronize()
    path = machine.folder / "trace.json"
    profile.export_chrome_trace(str(path))
    return read_trace(json.loads(path.read_text(encoding="utf-8")))
