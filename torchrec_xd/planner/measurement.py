"""Measures FBGEMM's lookups on this machine and fits their cost."""

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

from torchrec_xd.planner.calibration import TYPE_BYTES
from torchrec_xd.planner.tables import OptimizerName
from torchrec_xd.planner.topology import Calibration, LookupCost, LookupWork

TABLES = 4
"""Tables looked up by one call, as a sharded collection does."""
REPEATS = 5
"""The fastest counts: other processes can only slow a call down."""
FIT_SHAPES = tuple(itertools.product((2_000, 50_000, 1_000_000), (8, 32, 128), ((512, 1), (4096, 1), (512, 20))))
"""Rows, dim, (samples, ids per sample)."""
HELD_OUT_SHAPES = tuple(itertools.product((10_000, 200_000), (16, 64), ((1024, 1), (2048, 5))))
CACHE_MIB = (0.25, 1.0, 4.0, 16.0, 64.0)
"""Tried for the table size that is half cached."""
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
    """One shape and what a table took."""

    work: LookupWork
    forward_ms: float
    backward_ms: float


def calibrate(device: str, optimizer: OptimizerName) -> Calibration:
    """Measure a grid of shapes, fit them, and check the fit on shapes that were held out. Takes about a minute."""
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


def measure(shape: Shape, dtype: str, device: str, optimizer: OptimizerName) -> Measured:
    """Time of forward and backward on `TABLES` equal tables, per table."""
    rows, dim, (samples, length) = shape
    cuda = device == "cuda"
    place = (
        EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST,
        ComputeDevice.CUDA if cuda else ComputeDevice.CPU,
    )
    lookup = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, *place)] * TABLES,
        optimizer=OPTIMIZER_TYPES[optimizer],
        weights_precision=SPARSE_TYPES[dtype],
        output_dtype=SparseType.FP32,
        pooling_mode=PoolingMode.SUM,
    )
    forward, backward = [], []
    bags = TABLES * samples
    offsets = torch.arange(0, bags * length + 1, length, device=device)
    gradient = torch.ones(samples, TABLES * dim, device=device)
    for _ in range(REPEATS + 1):
        ids = torch.randint(0, rows, (bags * length,), device=device)
        began = _now(cuda)
        vectors = lookup(ids, offsets)
        between = _now(cuda)
        vectors.backward(gradient)
        forward.append(between - began)
        backward.append(_now(cuda) - between)
    work = LookupWork(rows, dim, TYPE_BYTES[dtype], samples * length, samples)
    # The first call warms up.
    return Measured(work, min(forward[1:]) * 1000 / TABLES, min(backward[1:]) * 1000 / TABLES)


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def fit(works: Sequence[LookupWork], times_ms: Sequence[float]) -> LookupCost:
    """Costs, none negative, with the least relative squared error."""
    fits = []
    for cache_mib in CACHE_MIB:
        empty = _cost([0.0] * 5, cache_mib)
        relative = np.array([empty.terms(work) for work in works]) / np.array(times_ms)[:, None]
        # Columns of very different size: scaled for the solver.
        scale = relative.max(axis=0)
        costs, residual = nnls(relative / scale, np.ones(len(works)))
        fits.append((float(residual), _cost((costs / scale).tolist(), cache_mib)))
    return min(fits, key=lambda pair: pair[0])[1]


def _cost(costs: Sequence[float], cache_mib: float) -> LookupCost:
    table, lookup, cold, byte, output = costs
    return LookupCost(
        per_table_ms=table,
        per_lookup_ms=lookup,
        per_cold_lookup_ms=cold,
        per_byte_ms=byte,
        per_output_byte_ms=output,
        cache_mib=cache_mib,
    )


def median_error(measured: Iterable[Measured], forward: LookupCost, backward: LookupCost) -> float:
    """Median relative error of forward plus backward."""
    errors = []
    for m in measured:
        took = m.forward_ms + m.backward_ms
        errors.append(abs(forward.milliseconds(m.work) + backward.milliseconds(m.work) - took) / took)
    return float(np.median(errors))
