"""Which devices compute faster in bf16."""

from __future__ import annotations

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bf16 faster than in fp32: a GPU that knows it, AMX or AVX-512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
