"""Tasks as plain modules on the CPU: the reference that everything sharded is held against."""

from __future__ import annotations

import torch
from torch import nn

from torchrec_xd.embeddings import table_collections


def materialise(task: nn.Module) -> nn.Module:
    """Give the tables, so far on the meta device, memory and their first weights."""
    for collection in table_collections(task):
        pooled = hasattr(collection, "embedding_bags")
        collection.to_empty(device="cpu")
        for config in collection.embedding_bag_configs() if pooled else collection.embedding_configs():
            tables = collection.embedding_bags if pooled else collection.embeddings
            with torch.no_grad():
                config.init_fn(tables[config.name].weight)
    return task
