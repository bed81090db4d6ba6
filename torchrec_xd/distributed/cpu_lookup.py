"""How FBGEMM's kernels are called on CPU: sequences as bags, and several groups of tables at the same time.

FBGEMM walks through the tables of a group on one thread there, forward and backward. So tables are dealt into as many
groups as there are threads, each with its own kernel. A table is still moved by one thread: all else is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding, BatchedFusedEmbeddingBag
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.distributed.lookups import lookups_of
from torchrec_xd.embeddings import table_collections, table_configs, table_parameters
from torchrec_xd.private_names import lookup_kernels, set_lookup_group, split_by_kernel

MOST_GROUPS = 8
"""Each group costs a call of FBGEMM's, half a millisecond of Python that the threads have to share."""


def assign_lookup_groups(module: nn.Module, groups: int) -> None:
    """Assign each table to a lookup group of its collection: in order, equally many features to each.

    Before sharding, and alike on all ranks.
    """
    for collection in table_collections(module):
        tables = list(zip(table_configs(collection), table_parameters(collection), strict=True))
        total, before = sum(len(config.feature_names) for config, _ in tables), 0
        for config, table in tables:
            set_lookup_group(table, before * groups // total)
            before += len(config.feature_names)


def look_up_as_bags(model: nn.Module) -> None:
    """Let sequences be looked up as bags of one id each: the same vectors and updates.

    FBGEMM's backward pass for unpooled lookups takes a microsecond per row on CPU, for pooled ones 15 times less
    (docs/decisions.md).
    """
    for lookup, pooled in lookups_of(model):
        for kernel in [] if pooled else lookup_kernels(lookup):
            if isinstance(kernel, BatchedFusedEmbedding):
                kernel.emb_module.pooling_mode, kernel.emb_module.is_nobag = PoolingMode.SUM, False
                kernel.forward = partial(bags_of_one, kernel.emb_module)


def allow_empty_shards(model: nn.Module) -> None:
    """Let tables have no rows on this rank, as some have with row_wise: 5 rows on 4 ranks are 2, 2, 1 and none.

    A group without any row FBGEMM takes to lie on a GPU, and refuses: it is not called. If only the last table of a
    group has none, FBGEMM's backward pass reads on behind the list of sizes for one that is not 0: it finds a 1 there.
    """
    for lookup, pooled in lookups_of(model):
        for kernel in lookup_kernels(lookup):
            if isinstance(kernel, BatchedFusedEmbedding | BatchedFusedEmbeddingBag):
                tables = kernel.emb_module
                if not tables.weights_host.numel():
                    kernel.forward = partial(no_vectors, tables, pooled)
                elif tables.hash_size_cumsum[-1] == tables.hash_size_cumsum[-2]:
                    tables.hash_size_cumsum[-1] += 1


def no_vectors(tables: Any, pooled: bool, features: KeyedJaggedTensor) -> Tensor:
    """What a lookup returns for features without ids: zeros, `[B, sum of widths]`, or no rows `[0, D]`.

    They want a gradient as others do, for each rank has to take part in the exchange on the way back.
    """
    shape = (features.stride(), tables.total_D) if pooled else (0, tables.max_D)
    return torch.zeros(shape, requires_grad=torch.is_grad_enabled())


def look_up_side_by_side(model: nn.Module, threads: int) -> None:
    """Let the groups of every sharded collection run at the same time."""
    for lookup, pooled in lookups_of(model):
        kernels = lookup_kernels(lookup)
        if kernels and all(isinstance(k, BatchedFusedEmbedding | BatchedFusedEmbeddingBag) for k in kernels):
            lookup.forward = partial(_look_up, lookup, threads, pooled)


def bags_of_one(tables: nn.Module, features: KeyedJaggedTensor) -> Tensor:
    """The vectors of all ids, `[N, D]`, feature after feature.

    A pooled lookup wants equally many bags of every feature: those with fewer ids get empty bags, which are dropped.
    """
    counts = features.length_per_key()
    count_F1 = torch.tensor(counts).unsqueeze(1)
    bags = max(*counts, 1)
    within_FN = torch.minimum(torch.arange(bags), count_F1)
    offsets = torch.cat([(count_F1.cumsum(0) - count_F1 + within_FN).flatten(), count_F1.sum(0)])
    pooled: Tensor = tables(indices=features.values().long(), offsets=offsets)
    if len(counts) == 1:
        return pooled[: counts[0]]
    return torch.cat([vectors[:n] for n, vectors in zip(counts, pooled.chunk(len(counts), dim=1), strict=True)])


def _look_up(lookup: Any, threads: int, pooled: bool, features: KeyedJaggedTensor) -> Tensor:
    """What the lookup's own forward returns: pooled vectors `[B, sum of widths]`, or all unpooled ones in one row."""
    parts = split_by_kernel(lookup, features)
    calls = [partial(kernel, part) for kernel, part in zip(lookup_kernels(lookup), parts, strict=True)]
    anchor = torch.empty(0, requires_grad=True)  # without an input that wants a gradient there is no way back
    vectors: tuple[Tensor, ...] = SideBySide.apply(anchor, threads, calls, torch.is_grad_enabled())
    if not pooled:
        vectors = tuple(group.view(-1) for group in vectors)
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


class SideBySide(torch.autograd.Function):
    """Calls whose graphs are kept apart from the rest and from each other, so that a thread each can walk them back."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, threads: int, calls: Sequence[Callable[[], Tensor]], wants_gradient: bool
    ) -> tuple[Tensor, ...]:
        """Run every call in a thread; `anchor` ties the result to the graph where `wants_gradient` holds."""

        def run(call: Callable[[], Tensor]) -> Tensor:
            with torch.set_grad_enabled(wants_gradient):
                return call()

        ctx.threads = threads
        with torch.profiler.record_function("tables: lookup"):
            ctx.vectors = list(lookup_threads(threads).map(run, calls))
        return tuple(vectors.detach() for vectors in ctx.vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        """Walk the graph of every call back in a thread; the tables update themselves on the way."""
        with torch.profiler.record_function("tables: backward and update"):
            list(lookup_threads(ctx.threads).map(torch.autograd.backward, ctx.vectors, gradients))
        return None, None, None, None


@cache
def lookup_threads(threads: int) -> ThreadPoolExecutor:
    """Threads that start none of their own: FBGEMM sorts a few thousand ids slower on two than on one."""
    own, started = torch.get_num_threads(), threading.Barrier(threads)

    def start(_: int) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first question has torch set the number anew, to what was set last: 1
        started.wait()

    pool = ThreadPoolExecutor(threads, "lookup")
    list(pool.map(start, range(threads)))
    torch.set_num_threads(own)  # what is set in one thread holds for libraries and threads to come, too
    return pool
