"""GPU models: memory, bandwidths and peak speeds, from the vendor's documents; and what GPUs are installed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

FIGURES = (
    "hbm_gib",
    "hbm_gib_s",
    "hbm_to_ddr_gib_s",
    "intra_node_gib_s",
    "fp32_tflops",
    "tf32_tflops",
    "bf16_tflops",
)
"""What `GpuModel` and `Cluster` hold under the same names."""


@dataclass(frozen=True)
class GpuModel:
    """A GPU model. Bandwidths are in GiB/s and of one direction; speeds are dense: data sheets show sparse ones too."""

    reported: str
    """Name that the driver reports, without `NVIDIA` in front."""
    source: str
    """Where the figures are from."""
    capability: tuple[int, int]
    """Compute capability."""
    hbm_gib: float
    """Memory, counted as on data sheets: 10^9 bytes a GB. Drivers may report a few percent more."""
    hbm_gib_s: float
    """Bandwidth of the memory."""
    hbm_to_ddr_gib_s: float
    """Bandwidth of the host link: what is left for data of PCIe x16 with 32 GB/s (PCIe 4) or 64 GB/s (PCIe 5)."""
    intra_node_gib_s: float
    """Bandwidth to the other GPUs of a node: NVLink, or the host link where there is none."""
    fp32_tflops: float
    """Peak speed in fp32, without tensor cores."""
    tf32_tflops: float
    """Peak speed in TF32."""
    bf16_tflops: float
    """Peak speed in bf16."""

    def figures(self) -> dict[str, float]:
        """`FIGURES` by name."""
        return {name: getattr(self, name) for name in FIGURES}


_A100 = GpuModel(
    reported="A100-SXM4-80GB",
    source="NVIDIA A100 data sheet",
    capability=(8, 0),
    hbm_gib=74.5,
    hbm_gib_s=1900,
    hbm_to_ddr_gib_s=25,
    intra_node_gib_s=279,
    fp32_tflops=19.5,
    tf32_tflops=156,
    bf16_tflops=312,
)
_H100 = GpuModel(
    reported="H100 80GB HBM3",
    source="NVIDIA H100 data sheet",
    capability=(9, 0),
    hbm_gib=74.5,
    hbm_gib_s=3120,
    hbm_to_ddr_gib_s=55,
    intra_node_gib_s=419,
    fp32_tflops=67,
    tf32_tflops=494.5,
    bf16_tflops=989.5,
)
GPUS = {
    "A100-40G": replace(_A100, reported="A100-SXM4-40GB", hbm_gib=37.25, hbm_gib_s=1450),
    "A100-80G": _A100,
    "A100-80G-PCIe": replace(_A100, reported="A100 80GB PCIe", hbm_gib_s=1800, intra_node_gib_s=25),
    "H100": _H100,
    "H100-PCIe": replace(
        _H100,
        reported="H100 PCIe",
        hbm_gib_s=1860,
        intra_node_gib_s=55,
        fp32_tflops=51,
        tf32_tflops=378,
        bf16_tflops=756,
    ),
    "H200": replace(_H100, reported="H200", source="NVIDIA H200 data sheet", hbm_gib=131.3, hbm_gib_s=4470),
    "B200": GpuModel(
        reported="B200",
        source="NVIDIA Blackwell architecture technical brief (HGX B200); memory: NVIDIA DGX B200 user guide",
        capability=(10, 0),
        hbm_gib=167.6,
        hbm_gib_s=7450,
        hbm_to_ddr_gib_s=55,
        intra_node_gib_s=838,
        fp32_tflops=80,
        tf32_tflops=1100,
        bf16_tflops=2250,
    ),
    "L40S": GpuModel(
        reported="L40S",
        source="NVIDIA L40S data sheet",
        capability=(8, 9),
        hbm_gib=44.7,
        hbm_gib_s=805,
        hbm_to_ddr_gib_s=25,
        intra_node_gib_s=25,
        fp32_tflops=91.6,
        tf32_tflops=183,
        bf16_tflops=362,
    ),
}
"""GPU models by the name that a cluster profile gives as `gpu`."""


class InstalledGpu(NamedTuple):
    """A GPU as torch reports it."""

    name: str
    memory: int
    """Bytes."""


def installed_gpu(device: torch.device | str) -> InstalledGpu:
    """The GPU of a device with an index."""
    properties = torch.cuda.get_device_properties(device)
    return InstalledGpu(properties.name, properties.total_memory)


def find_gpu(reported: str) -> str | None:
    """The model's key in `GPUS`; None where the table lacks it: a part of a GPU (MIG) is another model."""
    name = reported.removeprefix("NVIDIA ")
    return next((key for key, model in GPUS.items() if model.reported == name), None)
