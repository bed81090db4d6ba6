"""In which precision ranks exchange embeddings and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.types import CommOp, ParameterSharding, QuantizedCommCodecs, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

Precision = Literal["fp32", "fp16", "bf16", "int8"]
INT8_ROW = 32
"""So many numbers share one scale in FBGEMM's int8 format, and no rank's part may end within them."""
SUMMED = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value)
"""Sharding types whose bags are summed over ranks on the way."""


class CommunicationSettings(Settings):
    """Precision of the vectors that ranks exchange; tables, optimizers and arithmetic keep theirs.

    data_parallel tables exchange gradients by all-reduce, which stays fp32.
    """

    forward: Precision = "fp32"
    """Of embeddings."""
    backward: Precision = "fp32"
    """Of the embeddings' gradients."""

    def check(self, module: nn.Module, plan: ShardingPlan) -> None:
        """Refuse a plan of which some table cannot be exchanged so.

        Raises:
            UserError: int8, and bags that are cut by rows or shards of an odd width; each table on a line.
        """
        if "int8" not in (self.forward, self.backward):
            return
        faults = [
            f"sharding.communication: int8 cannot carry table '{table}' ({sharding.sharding_type}): {fault}"
            for path, tables in plan.plan.items()
            for table, sharding in tables.items()
            for fault in _int8_faults(sharding, isinstance(module.get_submodule(path), EmbeddingBagCollection))
        ]
        if faults:
            fix = "choose fp32, fp16 or bf16 as sharding.communication.forward and backward, or change sharding.types"
            raise UserError("\n".join([*faults, fix]))


def _int8_faults(sharding: ParameterSharding, pooled: bool) -> Iterator[str]:
    if sharding.sharding_type == ShardingType.DATA_PARALLEL.value:
        return
    if pooled and sharding.sharding_type in SUMMED:
        yield "bags of which each rank has a part of the rows are summed on the way, and int8 cannot be summed"
    widths = {int(shard.shard_sizes[1]) for shard in sharding.sharding_spec.shards}
    if odd := sorted(width for width in widths if width % INT8_ROW):
        yield f"its shards are {odd[0]} columns wide, but int8 needs a multiple of {INT8_ROW}"


def exchange_codecs(communication: CommunicationSettings) -> dict[str, QuantizedCommCodecs] | None:
    """Torchrec's codecs for the exchanges, None for fp32.

    Torchrec's own function for this takes fp16 on CPU where bf16 was asked for; gloo carries both.
    """
    if communication.forward == communication.backward == "fp32":
        return None
    precisions = CommType(communication.forward), CommType(communication.backward)
    exchanges = (
        CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
        CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
        CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
    )
    return {exchange.name: get_qcomm_codecs(QCommsConfig(*precisions)) for exchange in exchanges}
