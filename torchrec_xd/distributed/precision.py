"""How exactly a device computes: bf16, TF32, and whether the same sum is always added up in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""The workspace with which NVIDIA's matrix products repeat bit by bit (cuBLAS, "Results reproducibility")."""


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bf16 faster than in fp32: a GPU that knows it, AMX or AVX-512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


@contextmanager
def arithmetic(device: torch.device, *, tf32: bool, deterministic: bool) -> Iterator[None]:
    """How this process computes on a GPU until the block ends; on CPU results repeat anyway, and nothing is changed.

    Args:
        device: where it computes.
        tf32: multiply fp32 matrices with 10 bits of mantissa, as the tensor cores of an A100 or later do.
        deterministic: take algorithms that give the same bits every time. cuBLAS reads its setting at the first product
            of a process, so the block begins before that.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])
