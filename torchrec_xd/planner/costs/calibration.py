"""Torchrec's cost model, with measured lookup costs in place of its constants where a cluster profile has them."""

from __future__ import annotations

from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.estimator.annotations import backward_compute, forward_compute
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.estimator import EmbeddingPerfEstimator
from torchrec.distributed.planner.estimator.types import ShardPerfContext
from torchrec.distributed.planner.types import Topology
from torchrec.distributed.types import ShardingType

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import Calibration, LookupCost, LookupWork

TYPE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}


class DefaultConfig(EmbeddingPerfEstimatorConfig):
    """Torchrec's default cost model, evaluated in half the time."""

    def __dir__(self) -> list[str]:
        # Torchrec searches dir() for annotated methods a dozen times per shard; this class has none.
        return []


class CalibratedConfig(EmbeddingPerfEstimatorConfig):
    """Torchrec's cost model with measured lookups.

    Other kernels keep torchrec's ratio to `fused`; the time of the exchange stays torchrec's.
    """

    def __init__(self, calibration: Calibration, fused_bandwidth: float) -> None:
        super().__init__()
        self.calibration = calibration
        self.fused_bandwidth = fused_bandwidth

    def __dir__(self) -> list[str]:
        return ["forward_ms", "backward_ms"]

    @forward_compute  # type: ignore[untyped-decorator]
    def forward_ms(self, ctx: ShardPerfContext) -> float:
        """Forward lookup of one shard in ms."""
        return self._milliseconds(self.calibration.forward, ctx)

    @backward_compute  # type: ignore[untyped-decorator]
    def backward_ms(self, ctx: ShardPerfContext) -> float:
        """Backward pass and update of one shard in ms."""
        return self._milliseconds(self.calibration.backward, ctx)

    def _milliseconds(self, costs: dict[str, LookupCost], ctx: ShardPerfContext) -> float:
        if not ctx.hash_size:
            return 0.0
        slower = self.fused_bandwidth / float(ctx.device_bw)
        return slower * _cost_of(costs, ctx.table_data_type_size).milliseconds(shard_work(ctx))


def _cost_of(costs: dict[str, LookupCost], type_bytes: float) -> LookupCost:
    for name, cost in costs.items():
        if TYPE_BYTES[name] == type_bytes:
            return cost
    raise UserError(
        f"the cluster's calibration covers {', '.join(costs)}, no weights of {type_bytes:g} bytes; "
        "plan with one of these types, or use a cluster without calibration"
    )


def shard_work(ctx: ShardPerfContext) -> LookupWork:
    """The lookups of a shard in one step, counted as torchrec does."""
    parts = {
        ShardingType.ROW_WISE.value: ctx.world_size,
        ShardingType.TABLE_ROW_WISE.value: ctx.intra_group_size,
        ShardingType.GRID_SHARD.value: ctx.intra_group_size,
        ShardingType.DATA_PARALLEL.value: ctx.world_size,
    }.get(ctx.sharding_type, 1)
    lookups = ctx.batch_inputs * ctx.world_size / parts
    # Row shards write a vector for every sample of all ranks; replicas only for the samples of their own rank.
    everyone = 1 if ctx.sharding_type == ShardingType.DATA_PARALLEL.value else ctx.world_size
    outputs = ctx.batch_outputs * everyone if ctx.is_pooled else lookups
    return LookupWork(ctx.hash_size, ctx.emb_dim, ctx.table_data_type_size, lookups, outputs)


def perf_estimator(topology: Topology, calibration: Calibration | None) -> EmbeddingPerfEstimator:
    """Torchrec's estimator for `topology`, with measured lookup costs if there are any."""
    bandwidth = topology.ddr_mem_bw if topology.compute_device == "cpu" else topology.hbm_mem_bw
    config = DefaultConfig() if calibration is None else CalibratedConfig(calibration, bandwidth)
    return EmbeddingPerfEstimatorFactory.create_with_config(config, topology=topology)
