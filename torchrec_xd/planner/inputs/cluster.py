"""The cluster to plan for: ranks, memory and bandwidths, read from a profile."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, Topology, TopologyFactory, TrainerConfig

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.gpus import FIGURES, GPUS, InstalledGpu, find_gpu, installed_gpu
from torchrec_xd.settings import Settings, load_yaml, validate

GIB = 1024**3
HOST_SHARE = 0.85
"""Share of a GPU machine's memory that tables may fill: its processes and their batches need the rest."""

logger = logging.getLogger(__name__)


class LookupCost(Settings):
    """A linear model of one table's time in a fused lookup, in milliseconds, fitted to measurements."""

    per_table_ms: NonNegativeFloat
    """Fixed cost of a table."""
    per_lookup_ms: NonNegativeFloat
    """Per id, whatever the width."""
    per_row_ms: NonNegativeFloat
    """Per distinct row: the update adds up the gradients of equal ids first."""
    per_cold_row_ms: NonNegativeFloat
    """Extra per distinct row that is in no cache."""
    per_byte_ms: NonNegativeFloat
    """Per byte of the rows that are read."""
    per_output_byte_ms: NonNegativeFloat
    """Per byte of the vectors that are written."""
    cache_mib: PositiveFloat
    """Size of a table that has half of its rows in a cache."""

    def terms(self, work: LookupWork) -> tuple[float, ...]:
        """The factors of the six costs, for ids drawn uniformly from the rows."""
        table = work.rows * work.dim * work.type_bytes
        cold = table / (table + self.cache_mib * 1024**2) if table else 0.0
        row = work.dim * work.type_bytes
        distinct = -work.rows * math.expm1(-work.lookups / work.rows) if work.rows else 0.0
        return 1.0, work.lookups, distinct, distinct * cold, work.lookups * row, work.outputs * row

    def milliseconds(self, work: LookupWork) -> float:
        """Estimated time."""
        costs = (
            self.per_table_ms,
            self.per_lookup_ms,
            self.per_row_ms,
            self.per_cold_row_ms,
            self.per_byte_ms,
            self.per_output_byte_ms,
        )
        return sum(cost * term for cost, term in zip(costs, self.terms(work), strict=True))


@dataclass(frozen=True)
class LookupWork:
    """The lookups of one table in one step."""

    rows: int
    dim: int
    type_bytes: float
    lookups: float
    """Number of ids."""
    outputs: float
    """Number of vectors written."""


class Calibration(Settings):
    """Measured costs that replace torchrec's constants for one device and optimizer."""

    machine: str
    """Hardware, threads and torch version of the measurement."""
    optimizer: str
    """Fused optimizer of the measured backward passes."""
    forward: dict[str, LookupCost]
    """Weight type (`fp32`, `fp16`) to the cost of a forward pass."""
    backward: dict[str, LookupCost]
    """The same for a backward pass with the optimizer's update."""
    median_error: dict[str, NonNegativeFloat]
    """Weight type to the median relative error of forward plus backward, on shapes that were not fitted."""


class Cluster(Settings):
    """A cluster of equal ranks. Memory is per rank, in GiB; bandwidths are per rank and direction, in GiB/s."""

    device: Literal["cuda", "cpu"]
    """Where the tables are: `cuda` uses HBM and host memory (DDR), `cpu` host memory only."""
    world_size: PositiveInt
    """Number of ranks."""
    ranks_per_node: PositiveInt
    """Ranks on one node, connected by its fast links."""
    gpu: str | None = None
    """GPU model, for example `H100`: gives the defaults of memory, bandwidths (but between nodes) and speeds."""
    hbm_gib: NonNegativeFloat
    """Memory of one GPU; 0 on CPU."""
    ddr_gib: PositiveFloat
    """Host memory of one rank: that of the node divided by its ranks."""
    hbm_gib_s: PositiveFloat = 897.0
    """Bandwidth of the GPU's memory."""
    ddr_gib_s: PositiveFloat = 51.0
    """Bandwidth of host memory."""
    hbm_to_ddr_gib_s: PositiveFloat = 32.0
    """Bandwidth between a GPU and host memory."""
    intra_node_gib_s: PositiveFloat = 600.0
    """Bandwidth between ranks of one node."""
    inter_node_gib_s: PositiveFloat = 12.5
    """Bandwidth between nodes, per rank."""
    all_reduce_gib_s: PositiveFloat | None = None
    """Bandwidth of an all-reduce inside a node: bytes that a rank sends, over time. Default: `intra_node_gib_s`."""
    reservation: float = Field(default=0.15, ge=0, lt=1)
    """Share of the tables' device memory (HBM, on CPU DDR) kept free for the dense model, activations and batches."""
    fp32_tflops: PositiveFloat | None = None
    """TFLOP/s of one rank's matrix products in fp32: peak without sparsity, or what `plan calibrate` measured."""
    tf32_tflops: PositiveFloat | None = None
    """The same in TF32, which only GPUs have."""
    bf16_tflops: PositiveFloat | None = None
    """The same in bf16."""
    gemm_efficiency: float = Field(default=0.5, gt=0, le=1)
    """Share of these TFLOP/s that matrix products reach. The default is an assumption; `plan calibrate` measures what
    they reach, and writes 1."""
    launch_us: PositiveFloat = 7.5
    """Microseconds to launch one operator from Python. The default is an assumption: the middle of 5 to 10."""
    price_per_hour: PositiveFloat | None = None
    """Price of one rank, in any currency. Default: costs are not shown."""
    calibration: Calibration | None = None
    """Measured lookup costs. Default: torchrec's constants."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_gpu(cls, content: Any) -> Any:
        gpu = content.get("gpu") if isinstance(content, dict) else None
        if not isinstance(gpu, str):
            return content
        if gpu not in GPUS:
            raise ValueError(
                f"unknown gpu '{gpu}'; known: {', '.join(GPUS)}; for another one leave out 'gpu' and give "
                f"{', '.join(FIGURES)}"
            )
        return {**GPUS[gpu].figures(), **content}

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.device == "cpu" and self.gpu is not None:
            raise ValueError("a cpu cluster has no GPUs; remove 'gpu'")
        if self.device == "cuda" and self.hbm_gib == 0:
            raise ValueError("a cuda cluster needs 'hbm_gib', the memory of one GPU, above 0")
        if self.world_size > self.ranks_per_node and self.world_size % self.ranks_per_node:
            raise ValueError(
                f"world_size {self.world_size} is no multiple of ranks_per_node {self.ranks_per_node}; "
                "nodes must have equal numbers of ranks: change one of the two"
            )
        return self

    @property
    def node_size(self) -> int:
        """Ranks of one node; the whole cluster where it is smaller than a node."""
        return min(self.ranks_per_node, self.world_size)

    @property
    def hbm_bytes(self) -> int:
        """HBM limit for the tables of one rank."""
        return int(self.hbm_gib * GIB * (1 - self.reservation)) if self.device == "cuda" else 0

    @property
    def ddr_bytes(self) -> int:
        """Host memory limit for the tables of one rank."""
        free = self.ddr_gib * GIB
        return int(free * (1 - self.reservation)) if self.device == "cpu" else int(free)

    def with_changes(self, **changes: Any) -> Cluster:
        """A copy with other settings, validated again; settings that are None stay as they are.

        Another `gpu` comes with its figures.

        Raises:
            UserError: a value breaks a rule.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        kept = self.model_dump(exclude=set(FIGURES) if "gpu" in given else None)
        return validate(Cluster, {**kept, **given}, "cluster")

    def topology(self) -> Topology:
        """The cluster as torchrec's topology; its memory is the limit for tables, without the reservation."""
        per_ms = GIB / 1000
        return TopologyFactory.create_topology(
            TrainerConfig(
                world_size=self.world_size,
                local_world_size=self.node_size,
                hbm_cap_bytes=self.hbm_bytes if self.device == "cuda" else None,
                ddr_cap_bytes=self.ddr_bytes,
            ),
            HardwareConfig(
                hbm_mem_bw=self.hbm_gib_s * per_ms,
                ddr_mem_bw=self.ddr_gib_s * per_ms,
                hbm_to_ddr_mem_bw=self.hbm_to_ddr_gib_s * per_ms,
                intra_host_bw=self.intra_node_gib_s * per_ms,
                inter_host_bw=self.inter_node_gib_s * per_ms,
            ),
            KernelConfig(compute_device=self.device, use_hardware_based_bandwidth=True),
        )


def this_machine(
    device: Literal["cuda", "cpu"], world_size: int, ranks_per_node: int, gpus: Sequence[InstalledGpu] | None = None
) -> Cluster:
    """The cluster of a run, assuming that all nodes are like this machine; links between nodes are torchrec's constant.

    GPUs have the memory that they report and the bandwidths of their model. Different ones count as equal ones with the
    smallest memory and the slowest of each bandwidth. Models that are not known get torchrec's constants. The log warns
    of both.

    Args:
        device: where the tables are.
        world_size: number of ranks.
        ranks_per_node: of them on this machine.
        gpus: of the ranks. Default: the first ones of this machine.
    """
    host_gib = psutil.virtual_memory().total / GIB / ranks_per_node
    if device == "cpu":
        return Cluster(device=device, world_size=world_size, ranks_per_node=ranks_per_node, hbm_gib=0, ddr_gib=host_gib)
    if gpus is None:
        gpus = [installed_gpu(f"cuda:{i}") for i in range(min(ranks_per_node, torch.cuda.device_count()))]
    names = sorted({gpu.name for gpu in gpus})
    models = [find_gpu(name) for name in names]
    _warn_about_gpus(names, models)
    return Cluster(
        device=device,
        world_size=world_size,
        ranks_per_node=ranks_per_node,
        gpu=models[0] if len(models) == 1 else None,
        ddr_gib=host_gib * HOST_SHARE,
        hbm_gib=min(gpu.memory for gpu in gpus) / GIB,
        **_slowest(models),
    )


def _warn_about_gpus(names: Sequence[str], models: Sequence[str | None]) -> None:
    for name, model in zip(names, models, strict=True):
        if model is None:
            logger.warning(
                "the planner has no bandwidths of GPU '%s' (known: %s) and takes torchrec's constants; to plan with "
                "others, write a cluster profile or measure one (`torchrec-xd plan calibrate`), plan with it "
                "(`torchrec-xd plan make`), and name that plan as sharding.plan",
                name,
                ", ".join(GPUS),
            )
    if len(names) > 1:
        logger.warning(
            "the ranks have different GPUs (%s): the plan takes the smallest memory and the slowest bandwidths for all",
            ", ".join(names),
        )


def _slowest(models: Sequence[str | None]) -> dict[str, Any]:
    """The least of each bandwidth and speed; None counts as torchrec's constants, which have no speeds."""
    found = {}
    for figure in set(FIGURES) - {"hbm_gib"}:
        constant = Cluster.model_fields[figure].get_default()
        values = [constant if model is None else getattr(GPUS[model], figure) for model in models]
        found[figure] = None if None in values else min(values)
    return found


def load_cluster(name: str, folder: Path) -> Cluster:
    """A profile by name (`folder/NAME.yaml`) or by path.

    Raises:
        UserError: there is no such profile (the error lists the shipped ones), or the profile is not valid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise UserError(f"unknown cluster '{name}': give the path of a profile or one of: {known}")
    return validate(Cluster, load_yaml(path), str(path))
