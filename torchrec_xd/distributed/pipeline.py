"""Training steps in torchrec's pipeline: while a batch is computed, the next ones are copied and distributed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from torchrec_xd.batch import Batch
from torchrec_xd.distributed.optimizers import Optimizers
from torchrec_xd.embeddings import Embeddings

T = TypeVar("T")


def pipelined_steps(
    model: nn.Module,
    optimizers: Optimizers,
    device: torch.device,
    forward: Callable[[Batch], tuple[Tensor, T]],
    batches: Iterator[Batch],
) -> Generator[T, None, None]:
    """Train on batch after batch; gives for each what `forward` returned next to the loss.

    The numbers are those of a plain loop. While a batch is computed, the ids of the next one travel to the ranks that
    hold their rows, and the one after that is copied to the device; rows that are cached on the device are fetched
    before they are needed. Two batches are read ahead. When the last one has been trained on, or the generator is
    closed, the model can be called by anybody else again.

    Args:
        model: from `shard`.
        optimizers: its optimizers; the learning rates of a step are set before the step is asked for.
        device: of the model.
        forward: from a batch on the device to the loss (a scalar) and anything else.
        batches: in host memory; on a GPU in pinned memory, else their copies block.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # else a hint for torchrec's authors is shown
    kind = PrefetchTrainPipelineSparseDist if _prefetches(model) else TrainPipelineSparseDist
    pipeline = kind(_Lookups(model), optimizers, device, custom_model_fwd=forward)
    try:
        while True:
            try:
                done: T = pipeline.progress(batches)
            except StopIteration:
                return
            if not pipeline.batches:
                pipeline.detach()
            yield done
    finally:
        pipeline.detach()


class _Lookups(nn.Module):
    """Which collections read which part of a batch: the graph that torchrec traces, in place of the whole model's.

    Torchrec changes the forward methods of the collections, which are the model's own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = [part for part in model.modules() if isinstance(part, Embeddings)]  # a teacher has some too
        self.bags = nn.ModuleList([part.bags for part in parts if part.bags is not None])
        self.weighted = nn.ModuleList([part.weighted_bags for part in parts if part.weighted_bags is not None])
        self.sequences = nn.ModuleList([part.sequences for part in parts if part.sequences is not None])

    def forward(self, batch: Batch) -> list[Any]:
        """Never run, only traced."""
        pooled = [look_up(batch.bags) for look_up in self.bags]
        weighted = [look_up(batch.weighted_bags) for look_up in self.weighted]
        return pooled + weighted + [look_up(batch.sequences) for look_up in self.sequences]


def _prefetches(model: nn.Module) -> bool:
    """Whether kernels of some table fetch rows into their cache before they are needed (`CacheParams`)."""
    assert isinstance(model, DistributedModelParallel)
    caches = [table.cache_params for tables in model.plan.plan.values() for table in tables.values()]
    return any(cache is not None and cache.prefetch_pipeline for cache in caches)
