"""Measures what the dense part of a step depends on: matrix products, memory, launches, and links on one machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from torchrec_xd.distributed.links import measure_links
from torchrec_xd.distributed.precision import fast_bf16
from torchrec_xd.planner.costs.measurement import calibrate
from torchrec_xd.planner.inputs.cluster import GIB, Cluster
from torchrec_xd.table_types import TableOptimizer

GEMMS = ((4096, 256, 256), (4096, 512, 512), (4096, 1024, 256))
"""Rows, inputs and outputs of the matrix products that are timed; the median of their FLOP/s counts."""
FLOATS = 2**24
"""Numbers in each of the three tensors of the memory's measurement: more than caches hold."""
OPERATORS = 400
"""Operators whose launches are timed, as many in the backward pass."""
REPEATS = 7
"""Of each measurement. The fastest counts, as other processes can only slow it down."""


def measured_cluster(cluster: Cluster, optimizer: TableOptimizer) -> Cluster:
    """A cluster with the costs of this machine: lookups, matrix products, memory, launches; on CPU the links too.

    Takes some minutes. Links are measured between as many processes as one node has ranks.
    """
    found: dict[str, object] = {"calibration": calibrate(cluster.device, optimizer), **measure_rates(cluster.device)}
    if cluster.device == "cpu" and cluster.node_size > 1:
        links = measure_links(cluster.node_size)
        found |= {"intra_node_gib_s": links.all_to_all_gib_s, "all_reduce_gib_s": links.all_reduce_gib_s}
    return cluster.model_copy(update=found)


def measure_rates(kind: str) -> dict[str, float]:
    """Fields of a `Cluster` for one rank of this machine, as many threads as this process has."""
    device = torch.device(kind)
    speeds = {"fp32_tflops": _gemm_tflops(device, torch.float32)}
    if device.type == "cuda":
        speeds["tf32_tflops"] = _tf32_tflops(device)
    if fast_bf16(device):
        speeds["bf16_tflops"] = _gemm_tflops(device, torch.bfloat16)
    memory = "hbm_gib_s" if device.type == "cuda" else "ddr_gib_s"
    return {**speeds, "gemm_efficiency": 1.0, memory: _memory_gib_s(device), "launch_us": _launch_us(device)}


def _gemm_tflops(device: torch.device, dtype: torch.dtype) -> float:
    speeds = []
    for rows, inputs, outputs in GEMMS:
        given = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(inputs, outputs, device=device, dtype=dtype)
        made = torch.empty(rows, outputs, device=device, dtype=dtype)
        took = _fastest(lambda a=given, b=weight, out=made: torch.mm(a, b, out=out), device)  # type: ignore[misc]
        speeds.append(2 * rows * inputs * outputs / took / 1e12)
    return statistics.median(speeds)


def _tf32_tflops(device: torch.device) -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _gemm_tflops(device, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)


def _memory_gib_s(device: torch.device) -> float:
    """Two tensors are read, one is written."""
    one, other, total = (torch.ones(FLOATS, device=device) for _ in range(3))
    return 3 * 4 * FLOATS / _fastest(lambda: torch.add(one, other, out=total), device) / GIB


def _launch_us(device: torch.device) -> float:
    """Operators on one number, forward and backward; on a GPU until the last one is queued."""
    start = torch.ones(1, device=device, requires_grad=True)

    def chain() -> None:
        value = start
        for _ in range(OPERATORS):
            value = value * 1.0
        value.backward()  # type: ignore[no-untyped-call]

    return _fastest(chain, device, queued=True) / (2 * OPERATORS) * 1e6


def _fastest(call: Callable[[], object], device: torch.device, *, queued: bool = False) -> float:
    """Seconds of a call; `queued` does not wait for what it left to the device."""
    # CPU time of the thread leaves out waiting for other processes.
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    took = []
    for _ in range(REPEATS + 1):
        _synchronize(device)
        began = clock()
        call()
        if not queued:
            _synchronize(device)
        took.append(clock() - began)
    return min(took[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
