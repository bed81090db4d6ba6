"""How long a training step takes, part by part, and which part binds.

On GPUs four things run at the same time, and the slowest of them is the step: the device (lookups, exchange, dense
part, and what of the all-reduce the backward pass does not hide), the launching of its operators, the input (copy and
distribution of the next batch, as in torchrec's TrainPipelineSparseDist), and reading. On CPUs only reading runs at the
same time as the rest: launches, input and the whole all-reduce are waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import GIB, Cluster
from torchrec_xd.planner.plan import Plan
from torchrec_xd.planner.step.counting import DenseWork, Operator

Precision = Literal["fp32", "tf32", "bf16"]
"""Of matrix products."""
Bound = Literal["lookups", "exchange", "dense compute", "dense memory", "all-reduce", "launches", "input", "reader"]
"""What the time of a step may be spent on most."""


@dataclass(frozen=True)
class StepEstimate:
    """The parts of a step of the slowest rank, in ms, and what they add up to."""

    lookups_ms: float
    """Lookups and updates of tables, by the plan."""
    exchange_ms: float
    """Embeddings and their gradients between ranks."""
    compute_ms: float
    """Dense operators that the arithmetic of matrix products limits."""
    memory_ms: float
    """Dense operators that the memory's bandwidth limits."""
    all_reduce_ms: float
    """Dense gradients between ranks."""
    exposed_ms: float
    """What of it nothing hides."""
    launches_ms: float
    """Launching the dense operators."""
    input_ms: float
    """Copy of a batch to the GPU, and its ids to the ranks that hold the tables."""
    reader_ms: float
    """Reading a batch; 0 where the reader's speed was not given."""
    step_ms: float
    """The whole step."""
    binds: Bound
    """The largest part of what the step waits for."""

    @property
    def dense_ms(self) -> float:
        """Dense operators."""
        return self.compute_ms + self.memory_ms


def estimate_step(
    plan: Plan, work: DenseWork, precision: Precision, reader_rows_per_s: float | None = None
) -> StepEstimate:
    """The step of a plan's slowest rank.

    Args:
        plan: lookups and exchange, and the cluster.
        work: dense part of a rank's step, for the plan's batch size.
        precision: of its matrix products.
        reader_rows_per_s: what one rank reads. Default: reading costs nothing.

    Raises:
        UserError: the cluster has no TFLOP/s for the precision.
    """
    cluster = plan.cluster
    slowest = max(range(cluster.world_size), key=lambda rank: plan.rank_ms[rank])
    lookups = plan.rank_compute_ms[slowest]
    # Torchrec counts all of a rank's vectors, those that stay on it too.
    exchange = plan.rank_comms_ms[slowest] * _sent(cluster)
    compute, memory = kernels_ms(work.operators, cluster, precision)
    all_reduce = all_reduce_ms(work.gradient_bytes, cluster)
    gpu = cluster.device == "cuda"
    hidden = sum(kernels_ms(work.backward, cluster, precision)) if gpu else 0.0
    exposed = max(0.0, all_reduce - hidden)
    launches = len(work.operators) * cluster.launch_us / 1000
    given = input_ms(work, cluster)
    reader = plan.batch_size / reader_rows_per_s * 1000 if reader_rows_per_s else 0.0

    device: dict[Bound, float] = {
        "lookups": lookups,
        "exchange": exchange,
        "dense compute": compute,
        "dense memory": memory,
        "all-reduce": exposed,
    }
    others: dict[Bound, float] = {"launches": launches, "input": given}
    streams: list[dict[Bound, float]] = [{"reader": reader}]
    streams += [device, *({name: ms} for name, ms in others.items())] if gpu else [{**device, **others}]
    longest = max(streams, key=lambda parts: sum(parts.values()))
    return StepEstimate(
        lookups_ms=lookups,
        exchange_ms=exchange,
        compute_ms=compute,
        memory_ms=memory,
        all_reduce_ms=all_reduce,
        exposed_ms=exposed,
        launches_ms=launches,
        input_ms=given,
        reader_ms=reader,
        step_ms=sum(longest.values()),
        binds=max(longest, key=lambda part: longest[part]),
    )


def check_precision(cluster: Cluster, precision: Precision) -> None:
    """Check that matrix products can be priced.

    Raises:
        UserError: the cluster has no TFLOP/s for the precision.
    """
    if precision == "tf32" and cluster.device == "cpu":
        raise UserError("precision tf32: only GPUs have TF32; choose fp32 or bf16")
    if _tflops(cluster, precision) is None:
        known = ", ".join(kind for kind in ("fp32", "tf32", "bf16") if _tflops(cluster, kind) is not None) or "none"
        raise UserError(
            f"precision {precision}: the cluster has no '{precision}_tflops', the speed of its matrix products (it "
            f"has: {known}); add it to the profile, or have `torchrec-xd plan calibrate` measure it on such a machine"
        )


def default_precision(cluster: Cluster, trained: Literal["fp32", "bf16", "auto"]) -> Precision:
    """The precision of a run's matrix products, of its `trainer.precision`: TF32 for fp32 where a GPU has it."""
    if trained == "bf16" or (trained == "auto" and cluster.bf16_tflops is not None):
        return "bf16"
    return "tf32" if cluster.device == "cuda" and cluster.tf32_tflops is not None else "fp32"


def kernels_ms(operators: Sequence[Operator], cluster: Cluster, precision: Precision) -> tuple[float, float]:
    """Time of operators one after the other: of those that arithmetic limits, and of those that memory limits."""
    check_precision(cluster, precision)
    flops_per_ms = (_tflops(cluster, precision) or 0.0) * cluster.gemm_efficiency * 1e9
    bytes_per_ms = (cluster.hbm_gib_s if cluster.device == "cuda" else cluster.ddr_gib_s) * GIB / 1000
    compute = memory = 0.0
    for operator in operators:
        flops, moved = operator.flops / flops_per_ms, operator.bytes / bytes_per_ms
        compute, memory = (compute + flops, memory) if flops > moved else (compute, memory + moved)
    return compute, memory


def all_reduce_ms(gradient_bytes: float, cluster: Cluster) -> float:
    """A ring: every rank sends all but its own part twice."""
    return 2 * _sent(cluster) * gradient_bytes / _link(cluster, cluster.all_reduce_gib_s)


def input_ms(work: DenseWork, cluster: Cluster) -> float:
    """Copy of a batch to a GPU, then its ids to the ranks that hold the tables."""
    copy = work.batch_bytes / (cluster.hbm_to_ddr_gib_s * GIB / 1000) if cluster.device == "cuda" else 0.0
    return copy + _sent(cluster) * work.id_bytes / _link(cluster)


def _sent(cluster: Cluster) -> float:
    """Share of evenly spread bytes that leave a rank."""
    return (cluster.world_size - 1) / cluster.world_size


def _link(cluster: Cluster, inside_gib_s: float | None = None) -> float:
    """Bytes per ms of the slowest link between ranks."""
    inside = inside_gib_s or cluster.intra_node_gib_s
    one_node = cluster.world_size <= cluster.ranks_per_node
    return (inside if one_node else min(inside, cluster.inter_node_gib_s)) * GIB / 1000


def _tflops(cluster: Cluster, precision: Precision) -> float | None:
    return {"fp32": cluster.fp32_tflops, "tf32": cluster.tf32_tflops, "bf16": cluster.bf16_tflops}[precision]
