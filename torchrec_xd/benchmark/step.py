"""`step`: the model on batches in memory, and where its time goes; `counts`: the same without a clock."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import BatchSize, Json, Repeats, Result, RowsPerTable, Spread, Threads, seconds
from torchrec_xd.benchmark.profile import Profile, activities, profiled
from torchrec_xd.benchmark.workbench import Workbench, synthetic_run, workbench
from torchrec_xd.errors import UserError
from torchrec_xd.private_names import TorchDispatchMode, operator_name, storage_key
from torchrec_xd.table_types import TableDtype, TableOptimizer

ModelOption = Annotated[str, typer.Option(help=f"One of {', '.join(synthetic.MODELS)}.")]
Precision = Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Of the dense part.")]
Dtype = Annotated[TableDtype, typer.Option(help="Of the tables.")]
Optimizer = Annotated[TableOptimizer, typer.Option(help="Of the tables.")]

PROFILED = 6
"""Steps that the profiler looks at, some times over."""
GEMMS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::stack")


def step(
    model: ModelOption = "mmoe",
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 4096,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    optimizer: Optimizer = "rowwise_adagrad",
    threads: Threads = 0,
    repeats: Repeats = 5,
    steps: Annotated[int, typer.Option(help="Steps of one measurement.")] = 10,
    trace: Annotated[str, typer.Option(help="Also write a trace of three steps here, for Perfetto.")] = "",
    out: Json = None,
) -> None:
    """Rows per second on batches in memory, the share of each part, and FLOP/s compared with the same GEMMs alone."""
    known(model)
    settings = {"model": model, "rows per table": rows_per_table, "batch": batch_size, "precision": precision}
    with (
        synthetic_run(model, rows_per_table, batch_size, precision, dtype, optimizer) as config,
        workbench(config, threads) as bench,
    ):
        rows = bench.rows * bench.processes.size
        speed = Spread(tuple(bench.speed(steps) for _ in range(repeats)))
        result = Result(
            "step", {**settings, "tables": dtype, "optimizer": optimizer, "threads": torch.get_num_threads()}
        )
        result.rows = [{"what": "whole step", "ms": Spread(tuple(1000 * rows / v for v in speed.values))}]
        profile = profiled(partial(bench.run, PROFILED), PROFILED, bench.processes.device)
        on_gpu, busy = gpu_rows(profile, rows / speed.median)
        result.rows += [*phases(profile), *on_gpu]
        dense, alone, flops = gemms(bench, profile)
        result.rows += [
            {"what": "dense part (all but tables and exchange)", "ms": 1000 * dense, "TFLOP/s": flops / dense / 1e12},
            {"what": "its GEMMs alone, same shapes", "ms": 1000 * alone, "TFLOP/s": flops / alone / 1e12},
        ]
        ranks = bench.processes.size
        result.more = {"rows_per_second": speed, "dense_of_gemm_ceiling": alone / dense, "ranks": ranks, **busy}
        if trace:
            write_trace(bench, trace)
        if bench.processes.is_main_process:
            result.settings["rows/s"] = str(speed)
            result.report(out)


def counts(model: ModelOption = "mmoe", precision: Precision = "fp32", dtype: Dtype = "fp16", out: Json = None) -> None:
    """Counts of one step, the same on any machine: GEMMs, copies, allocations. What CI compares, with `history`."""
    known(model)
    with synthetic_run(model, 100, 64, precision, dtype) as config, workbench(config, 1, batches=1) as bench:
        counted = count(bench.step)
        result = Result("counts", {"model": model, "precision": precision, "tables": dtype})
        result.rows = [{"what": name, "per step": str(number)} for name, number in counted.items()]
        result.more = {"counts": counted}
        result.report(out)


def known(model: str) -> None:
    """Refuse a model that is not measured.

    Raises:
        UserError: an unknown name.
    """
    if model not in synthetic.MODELS:
        raise UserError(f"--model {model}: choose one of {', '.join(synthetic.MODELS)}")


def phases(profile: Profile) -> list[dict[str, Any]]:
    """Milliseconds of a step by kind of work, and its share of all operators."""
    spent: Counter[str] = Counter()
    for name, time in profile.spent.items():
        spent[_kind(name)] += time  # type: ignore[assignment]
    total = sum(spent.values())
    return [
        {"what": f"  {kind}", "ms": spent[kind] / profile.steps / 1000, "share": f"{spent[kind] / total:.0%}"}
        for kind, _ in spent.most_common()
    ]


def gpu_rows(profile: Profile, step_seconds: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """How busy the GPU is in a step that takes so long, and what it is given to do; nothing on a CPU."""
    if not profile.kernels:
        return [], {}
    busy, kernels = profile.busy / profile.steps / 1e6, profile.kernels / profile.steps
    rows: list[dict[str, Any]] = [
        {"what": "GPU busy", "ms": 1000 * busy, "share": f"{busy / step_seconds:.0%}"},
        {"what": "kernels of a step", "per step": f"{kernels:.0f}"},
    ]
    return rows, {"gpu_busy": busy / step_seconds, "kernels_per_step": kernels}


def _kind(name: str) -> str:
    if name.startswith(("fbgemm::", "tables: ")):
        return "tables: backward and update" if "backward" in name else "tables: lookup"
    if name in GEMMS:
        return "GEMM"
    if name in COPIES:
        return "copies and casts"
    if name.startswith(("c10d::", "gloo", "nccl")):
        return "exchange"
    if "adamw" in name.lower() or name.startswith("Optimizer."):
        return "dense optimizer"
    return "element-wise and rest"


def gemms(bench: Workbench, profile: Profile) -> tuple[float, float, float]:
    """Seconds of a step without tables and exchange, seconds of its GEMMs run alone, and its FLOPs."""
    with FlopCounterMode(display=False) as counter, _GemmShapes() as recorder:
        bench.step()
    flops = float(counter.get_total_flops())
    elsewhere = ("tables: backward and update", "tables: lookup", "exchange")
    outside = sum(time for name, time in profile.spent.items() if _kind(name) in elsewhere) / profile.steps / 1e6
    whole = statistics.median(seconds(bench.step) for _ in range(2 * profile.steps))
    alone = sum(_fastest(call) for call in recorder.calls)
    return whole - outside, alone, flops


def _fastest(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    return min(seconds(call) for _ in range(repeats))


class _GemmShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every GEMM of what runs inside, to be run again on numbers of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator_name(func) in GEMMS:
            inputs = [torch.randn_like(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
            self.calls.append(lambda: func(*inputs))
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object]) -> dict[str, int]:
    """GEMMs, copies, other operators, and tensors made, of one call."""
    with _Counts() as counter:
        call()
    return dict(counter.counts)


class _Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = {"gemms": 0, "copies": 0, "operators": 0, "allocations": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator_name(func)
        given = {storage_key(a) for a in args if isinstance(a, torch.Tensor) and not a.is_meta}
        made = func(*args, **(kwargs or {}))
        outputs = [o for o in (made if isinstance(made, tuple | list) else [made]) if isinstance(o, torch.Tensor)]
        self.counts["operators"] += 1
        self.counts["gemms"] += name in GEMMS
        self.counts["copies"] += name in COPIES
        self.counts["allocations"] += sum(storage_key(o) not in given for o in outputs)
        return made


def write_trace(bench: Workbench, path: str) -> None:
    """Three steps as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open."""
    with torch.profiler.profile(activities=activities(bench.processes.device), with_stack=True) as profiler:
        bench.run(3)
    profiler.export_chrome_trace(path)
