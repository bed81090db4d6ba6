"""What may be sharded, and how: the one list of sharders, for training and planning alike."""

from __future__ import annotations

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder, ShardingType

from torchrec_xd.distributed.exchange import CommunicationSettings, exchange_codecs


class BagSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise on every device: torchrec's own list leaves it out on CPU, where it runs all the same."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Sharding types for a device."""
        types: list[str] = super().sharding_types(compute_device_type)
        row_wise: str = ShardingType.ROW_WISE.value
        return types if row_wise in types else [*types, row_wise]


class SequenceSharder(EmbeddingCollectionSharder):
    """Offers what trains sequences right: torchrec 1.8 fails on replicated tables that several features share."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Sharding types for a device."""
        return [
            kind for kind in super().sharding_types(compute_device_type) if kind != ShardingType.DATA_PARALLEL.value
        ]


def sharders(communication: CommunicationSettings | None = None) -> list[ModuleSharder[nn.Module]]:
    """What may be sharded: a collection without a sharder would silently stay whole on every rank.

    Ranks exchange embeddings and gradients in the precision of `communication`. Default: fp32.
    """
    codecs = None if communication is None else exchange_codecs(communication)
    return [BagSharder(qcomm_codecs_registry=codecs), SequenceSharder(qcomm_codecs_registry=codecs)]


def torchrec_sharders() -> list[ModuleSharder[nn.Module]]:
    """Torchrec's own sharders, with all that they offer: for table lists, whose plans other programs may load."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]
