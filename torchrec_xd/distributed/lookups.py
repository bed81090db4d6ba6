"""What looks up the tables of a sharded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from torchrec_xd.private_names import sharded_lookups


def lookups_of(model: nn.Module) -> Iterator[tuple[Any, bool]]:
    """What looks up the groups of each sharded collection, and whether it pools; torchrec hides it from modules().

    Replicated tables, which torchrec has put into DistributedDataParallel by then, are left out.
    """
    for module in model.modules():
        pooled = isinstance(module, ShardedEmbeddingBagCollection)
        if pooled or isinstance(module, ShardedEmbeddingCollection):
            lookups = sharded_lookups(module)
            yield from ((each, pooled) for each in lookups if not isinstance(each, DistributedDataParallel))


def forget_cached_rows(model: nn.Module) -> None:
    """Empty the caches of all tables, so that the rows that were just written into the tables are the ones looked up.

    Under UVM caching (`fused_uvm_caching`) a table lies in the CPU's memory, and the GPU keeps copies of the rows that
    it used last. A row that is written into the table is hidden by its copy, which later overwrites it. So whoever
    writes into shards calls this afterwards. The shards come from `state_dict()`, for which torchrec writes all copies
    back first: a row that nobody overwrites is kept. Without effect on tables without a cache.
    """
    for lookup, _ in lookups_of(model):
        lookup.purge()
