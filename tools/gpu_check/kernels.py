"""FBGEMM's lookups, alone: against plain torch, and how fast they read."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor

from tools.gpu_check.step import Found, Machine
from torchrec_xd.planner.costs.measurement import OPTIMIZER_TYPES, run_lookup
from torchrec_xd.planner.inputs.cluster import LookupWork
from torchrec_xd.table_types import CPU_TABLE_OPTIMIZERS, TableOptimizer

ROWS, BAGS, LR, EPS = 500, 300, 0.1, 1e-8
DIMS = (4, 8, 64, 256)
POOLINGS = {"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN}
LIMIT = {"fp32": 1e-5, "fp16": 2e-3}
"""Largest relative error (norm of the difference); fp16 weights are rounded to 11 bits, perhaps at random."""


def kernels(machine: Machine) -> Found:
    """Forward and one update of every optimizer, weight type, width and pooling, against torch in float64."""
    names: tuple[TableOptimizer, ...] = get_args(TableOptimizer) if machine.cuda else CPU_TABLE_OPTIMIZERS
    worst: dict[str, dict[str, float]] = {}
    for name, dtype in itertools.product(names, (SparseType.FP32, SparseType.FP16)):
        errors = [_errors(machine, name, dtype, dim, pooling) for dim in DIMS for pooling in POOLINGS]
        forward, weights = (max(values) for values in zip(*errors, strict=True))
        worst[f"{name}, {dtype.value}"] = {"forward": forward, "weights after one update": weights}
    bad = [key for key, errors in worst.items() if max(errors.values()) > LIMIT[key.split(", ")[1]]]
    return Found(not bad, {"largest relative errors": worst, "too large": bad})


def _errors(machine: Machine, name: TableOptimizer, dtype: SparseType, dim: int, pooling: str) -> tuple[float, float]:
    """Relative errors of the vectors, and of the weights after one update."""
    torch.manual_seed(0)
    place = EmbeddingLocation.DEVICE if machine.cuda else EmbeddingLocation.HOST
    lookup = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, dim, place, ComputeDevice.CUDA if machine.cuda else ComputeDevice.CPU)],
        optimizer=OPTIMIZER_TYPES[name],
        learning_rate=LR,
        eps=EPS,
        weights_precision=dtype,
        output_dtype=SparseType.FP32,
        pooling_mode=POOLINGS[pooling],
        device=machine.device,
    )
    (weight,) = lookup.split_embedding_weights()
    weight.copy_(torch.randn(ROWS, dim))
    lengths = torch.randint(0, 5, (BAGS,))
    ids = torch.randint(0, ROWS, (int(lengths.sum()),))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    gradient = torch.randn(BAGS, dim)

    reference = weight.detach().double().cpu().requires_grad_()
    expected = F.embedding_bag(ids, reference, offsets[:-1], mode=pooling)
    expected.backward(gradient.double())  # type: ignore[no-untyped-call]
    assert reference.grad is not None
    after = _updated(name, reference.detach(), reference.grad)

    vectors = lookup(ids.to(machine.device), offsets.to(machine.device))
    vectors.backward(gradient.to(machine.device))
    return _apart(vectors, expected), _apart(weight, after)


def _updated(name: TableOptimizer, weight: Tensor, gradient: Tensor) -> Tensor:
    """The first step of an optimizer, its state being zero before; rows without a gradient stay."""
    if name == "sgd":
        return weight - LR * gradient
    if name == "adam":  # both corrected moments are the gradient's own
        return weight - LR * gradient / (gradient.abs() + EPS)
    square = gradient.square().mean(1, keepdim=True) if name == "rowwise_adagrad" else gradient.square()
    return weight - LR * gradient / (square.sqrt() + EPS)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


def memory(machine: Machine) -> Found:
    """Whether four large tables take the memory that they should, and how fast one lookup reads them."""
    rows, dim, samples, length, tables = (5_000_000, 128, 65_536, 4, 4) if machine.cuda else (50_000, 32, 4096, 4, 4)
    work = LookupWork(rows, dim, 4, samples * length, samples)
    forward, backward, held = run_lookup([work] * tables, "fp32", machine.device.type, "rowwise_adagrad")
    tables_bytes = tables * rows * (dim + 1) * 4  # weights, and one number of state per row
    read = tables * samples * length * dim * 4
    found: dict[str, Any] = {
        "shape": f"{tables} tables of {rows:,} x {dim} fp32, {samples:,} bags of {length} ids",
        "forward ms": forward,
        "backward ms": backward,
        "GB/s of rows read, forward": read / forward / 1e6,
        "GiB held": held / 2**30,
        "GiB of weights and state": tables_bytes / 2**30,
    }
    return Found(tables_bytes <= held <= 1.05 * tables_bytes + 2**24, found)
