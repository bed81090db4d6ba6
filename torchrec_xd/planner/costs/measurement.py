"""Measures FBGEMM's lookups on this machine and fits a cost model to them."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from scipy.optimize import nnls

from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs.calibration import TYPE_BYTES
from torchrec_xd.planner.inputs.cluster import Calibration, LookupCost, LookupWork
from torchrec_xd.table_types import TableOptimizer

TABLES = 4
"""Tables in one call: a sharded collection looks up several at once."""
REPEATS = 20
"""Calls of each lookup. The fastest counts, as other processes can only slow it down."""
FIT_SHAPES = tuple(itertools.product((100, 2_000, 50_000, 1_000_000), (8, 32, 128), ((512, 1), (4096, 1), (512, 20))))
"""Shapes to fit: rows, dim, (samples, ids per sample)."""
HELD_OUT_SHAPES = tuple(itertools.product((500, 10_000, 200_000), (16, 64), ((1024, 1), (2048, 5))))
CACHE_MIB = (0.25, 1.0, 4.0, 16.0, 64.0)
"""Values to try for `LookupCost.cache_mib`."""
OPTIMIZER_TYPES = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
SPARSE_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16}

Shape = tuple[int, int, tuple[int, int]]


@dataclass(frozen=True)
class Measured:
    """Lookups of one table and the times that they took."""

    work: LookupWork
    forward_ms: float
    backward_ms: float


def calibrate(device: str, optimizer: TableOptimizer) -> Calibration:
    """Measure a grid of shapes, fit costs to them, and test the fit on held-out shapes. Takes about a minute."""
    forward, backward, errors = {}, {}, {}
    for dtype in SPARSE_TYPES:
        fitted = [measure(shape, dtype, device, optimizer) for shape in FIT_SHAPES]
        held_out = [measure(shape, dtype, device, optimizer) for shape in HELD_OUT_SHAPES]
        forward[dtype] = fit([m.work for m in fitted], [m.forward_ms for m in fitted])
        backward[dtype] = fit([m.work for m in fitted], [m.backward_ms for m in fitted])
        errors[dtype] = median_error(held_out, forward[dtype], backward[dtype])
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return Calibration(machine=machine, optimizer=optimizer, forward=forward, backward=backward, median_error=errors)


def measure(shape: Shape, dtype: str, device: str, optimizer: TableOptimizer) -> Measured:
    """Forward and backward time per table, on `TABLES` equal tables."""
    rows, dim, (samples, length) = shape
    work = LookupWork(rows, dim, TYPE_BYTES[dtype], samples * length, samples)
    forward, backward, _ = run_lookup([work] * TABLES, dtype, device, optimizer)
    return Measured(work, forward / TABLES, backward / TABLES)


def run_lookup(
    works: Sequence[LookupWork], dtype: str, device: str, optimizer: TableOptimizer
) -> tuple[float, float, int]:
    """Forward ms, backward ms and bytes (weights and optimizer state) of one fused lookup of several tables.

    Raises:
        UserError: FBGEMM has no such optimizer on this device.
    """
    cuda = device == "cuda"
    if optimizer == "adam" and not cuda:
        raise UserError("FBGEMM has no fused adam on CPU; choose sgd, rowwise_adagrad or adagrad")
    place = (
        EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST,
        ComputeDevice.CUDA if cuda else ComputeDevice.CPU,
    )
    lookup = SplitTableBatchedEmbeddingBagsCodegen(
        [(work.rows, work.dim, *place) for work in works],
        optimizer=OPTIMIZER_TYPES[optimizer],
        weights_precision=SPARSE_TYPES[dtype],
        output_dtype=SparseType.FP32,
        pooling_mode=PoolingMode.SUM,
    )
    samples = max(round(work.outputs) for work in works)
    ends = [torch.linspace(0, round(work.lookups), samples + 1, device=device)[1:].round().long() for work in works]
    starts = np.cumsum([0, *(round(work.lookups) for work in works)])
    first = torch.zeros(1, dtype=torch.long, device=device)
    offsets = torch.cat([first, *(end + int(start) for end, start in zip(ends, starts, strict=False))])
    gradient = torch.ones(samples, sum(work.dim for work in works), device=device)
    watch = Stopwatch(device)
    for _ in range(REPEATS + 1):
        ids = torch.cat([torch.randint(0, work.rows, (round(work.lookups),), device=device) for work in works])
        watch.mark()
        vectors = lookup(ids, offsets)
        watch.mark()
        vectors.backward(gradient)
        watch.mark()
    held = sum(t.numel() * t.element_size() for t in (*lookup.parameters(), *lookup.buffers()))
    # Three marks a call: forward, backward, the next call's ids. The first call warms up.
    passed = watch.passed_ms()
    return min(passed[3::3]), min(passed[4::3]), held


class Stopwatch:
    """Takes the time between marks.

    On a GPU marks are events in its stream, waited for once at the end: the GPU does not wait for this process between
    them, as long as its kernels take longer than their launches.
    """

    def __init__(self, device: str) -> None:
        self._events: list[torch.cuda.Event] | None = [] if device == "cuda" else None
        self._seconds: list[float] = []

    def mark(self) -> None:
        """Mark this point."""
        if self._events is None:
            self._seconds.append(_cpu_seconds())
        else:
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[-1].record()

    def passed_ms(self) -> list[float]:
        """Time between consecutive marks."""
        if self._events is None:
            return [1000 * (end - begin) for begin, end in itertools.pairwise(self._seconds)]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in itertools.pairwise(self._events)]


def _cpu_seconds() -> float:
    if torch.get_num_threads() == 1:
        # CPU time of the thread: leaves out waiting for other processes.
        return time.thread_time()
    return time.perf_counter()


def fit(works: Sequence[LookupWork], times_ms: Sequence[float]) -> LookupCost:
    """Non-negative costs with the least relative squared error."""
    fits = []
    for cache_mib in CACHE_MIB:
        empty = _cost([0.0] * 6, cache_mib)
        relative = np.array([empty.terms(work) for work in works]) / np.array(times_ms)[:, None]
        # The columns differ by orders of magnitude: scale them for the solver.
        scale = relative.max(axis=0)
        costs, residual = nnls(relative / scale, np.ones(len(works)))
        fits.append((float(residual), _cost((costs / scale).tolist(), cache_mib)))
    return min(fits, key=lambda pair: pair[0])[1]


def _cost(costs: Sequence[float], cache_mib: float) -> LookupCost:
    table, lookup, row, cold, byte, output = costs
    return LookupCost(
        per_table_ms=table,
        per_lookup_ms=lookup,
        per_row_ms=row,
        per_cold_row_ms=cold,
        per_byte_ms=byte,
        per_output_byte_ms=output,
        cache_mib=cache_mib,
    )


def median_error(measured: Iterable[Measured], forward: LookupCost, backward: LookupCost) -> float:
    """Median relative error of forward plus backward time."""
    errors = []
    for m in measured:
        took = m.forward_ms + m.backward_ms
        errors.append(abs(forward.milliseconds(m.work) + backward.milliseconds(m.work) - took) / took)
    return float(np.median(errors))
