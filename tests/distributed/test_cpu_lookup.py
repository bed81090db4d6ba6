"""Tables looked up by several threads train as those looked up by one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import (
    MATRIX,
    Trained,
    assert_same_training,
    batches,
    settings,
    task_of,
    train_or_tell,
    train_plain,
    train_sharded,
)
from torchrec_xd.distributed.cpu_lookup import SideBySide, assign_lookup_groups, lookup_threads
from torchrec_xd.distributed.optimizers import TableOptimizerSettings, fuse_optimizers
from torchrec_xd.distributed.process_group import LOOKUP_KERNELS
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, table_collections, table_configs, table_parameters
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.schema import Schema


@pytest.fixture
def content(tmp_path):
    return schema_at(write_feed(tmp_path))


def on_threads(rank: int, threads: tuple[int, ...], *args):
    torch.set_num_threads(threads[rank])
    return train_sharded(rank, *args)


@pytest.mark.parametrize(("threads", "name"), [((2,), "rowwise_adagrad"), ((3,), "sgd"), ((2, 2), "adagrad")])
def test_several_threads_train_as_the_plain_model_does(content, threads, name):
    ranks = len(threads)
    expected = train_plain(Schema.model_validate(content), name, ranks)
    found = run_ranks(ranks, on_threads, threads, content, name, ShardingSettings())
    assert_same_training(found, expected)


def test_ranks_with_unlike_numbers_of_threads_agree_on_the_groups(content):
    """Each rank works out how the others group: alone with its groups it would read vectors in another order.

    The table that pools by mean stands between others, and behind them where there is one group of each pooling.
    """
    expected = train_plain(Schema.model_validate(content), "adagrad", 2)
    placement = ShardingSettings(types=("row_wise",))
    assert_same_training(run_ranks(2, on_threads, (1, 2), content, "adagrad", placement), expected)


def each_on_threads(rank: int, content: dict) -> list[Trained | str]:
    torch.set_num_threads(2)
    return [train_or_tell(rank, content, kinds, "adagrad") for kinds in MATRIX]


def test_every_sharding_type_trains_on_several_threads(content):
    """Replicated tables, whose gradients the ranks average, are no business of these threads, and are left alone."""
    content = {**content, "dim": 64}
    expected = train_plain(Schema.model_validate(content), "adagrad", 2)
    for found in zip(*run_ranks(2, each_on_threads, content, timeout=150), strict=True):
        assert all(isinstance(one, Trained) for one in found), found[0]
        assert_same_training(list(found), expected)


def seen(rank: int, content: dict, threads: int) -> list:
    """Groups of each collection, the threads that looked them up, what those and this one say of their number."""
    torch.set_num_threads(threads)
    schema = Schema.model_validate(content)
    model, optimizers = sharded(task_of(schema), settings("adagrad"), processes_of(rank))
    kinds = ShardedEmbeddingBagCollection | ShardedEmbeddingCollection
    lookups = [lookup for module in model.modules() if isinstance(module, kinds) for lookup in module._lookups]
    noted = []
    for lookup in lookups:
        for kernel in lookup._emb_modules:
            kernel.emb_module.register_forward_hook(
                lambda *_: noted.append((threading.current_thread().name[:6], torch.get_num_threads()))
            )
    optimizers.set_lr(0, 1)
    optimizers.zero_grad()
    loss = model(batches(schema, 0, 1)[0]).total_loss()
    loss.backward()
    with torch.no_grad():
        free = model(batches(schema, 0, 1)[0]).total_loss()
    return [[len(lookup._emb_modules) for lookup in lookups], noted, torch.get_num_threads(), free.requires_grad]


def test_each_group_has_a_thread_that_starts_no_others(content):
    [[groups, noted, mine, free]] = run_ranks(1, seen, content, 2)
    assert max(groups) >= 2  # one per thread, and per kind of pooling
    assert set(noted) == {("lookup", 1)}
    assert mine == 2  # the dense part keeps its own
    assert not free
    [[groups_of_one, noted, _, _]] = run_ranks(1, seen, content, 1)
    assert sum(groups_of_one) < sum(groups)
    assert set(noted) == {("MainTh", 1)}


def test_tables_are_dealt_by_the_features_that_read_them(content):
    """Each collection's apart: a teacher's tables are no counterpart of the student's."""
    schema, holder = Schema.model_validate(content), torch.nn.Module()
    holder.embeddings = Embeddings(schema, EmbeddingSettings(), seed=0)
    holder.teacher = Embeddings(schema, EmbeddingSettings(), seed=0)
    fuse_optimizers(holder, TableOptimizerSettings())
    assign_lookup_groups(holder, 2)
    collections = list(table_collections(holder))
    assert len(collections) == 4
    for collection in collections:
        readers = [len(config.feature_names) for config in table_configs(collection)]
        groups = [table._optimizer_kwargs[0]["_batch_key"] for table in table_parameters(collection)]
        assert groups == sorted(groups)
        share = [sum(n for n, group in zip(readers, groups, strict=True) if group == g) for g in (0, 1)]
        assert abs(share[0] - share[1]) <= max(readers)


def test_what_fails_in_a_thread_is_raised():
    def fail():
        raise ValueError("table 3")

    with pytest.raises(ValueError, match="table 3"):
        SideBySide.apply(torch.empty(0, requires_grad=True), 2, [fail, partial(torch.ones, 1)], True)


def test_gradients_reach_each_part_and_come_back_through_it():
    """Two calls of unlike width: x * 2 and x * 3, whose gradients are 2 and 3 times what comes in."""
    x = [torch.ones(2, 1, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    parts = SideBySide.apply(torch.empty(0, requires_grad=True), 2, [lambda: x[0] * 2, lambda: x[1] * 3], True)
    (torch.cat(parts, dim=1) * torch.tensor([[1.0, 10, 100]])).sum().backward()
    assert x[0].grad.tolist() == [[2.0], [2.0]]
    assert x[1].grad.tolist() == [[30.0, 300.0]] * 2


def test_starting_the_threads_leaves_the_number_of_this_one():
    before = torch.get_num_threads()
    lookup_threads.cache_clear()
    lookup_threads(3)
    assert torch.get_num_threads() == before
    assert list(lookup_threads(3).map(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]


KERNELS = """
import hashlib, os, torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables
from torchrec_xd.distributed.process_group import LOOKUP_KERNELS, process_group

found, weight = hashlib.sha256(), torch.linspace(0.1, 1, 2 * 64 * 7)
with process_group():
    for dtype in (SparseType.FP16, SparseType.FP32):
        for pooling in (PoolingMode.SUM, PoolingMode.MEAN):
            for weights in (None, weight):
                torch.manual_seed(0)
                tables = Tables([(1000, 12, EmbeddingLocation.HOST, ComputeDevice.CPU)] * 2, weights_precision=dtype,
                    optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, pooling_mode=pooling, learning_rate=0.1)
                tables.init_embedding_weights_uniform(-0.1, 0.1)
                for _ in range(3):
                    vectors = tables(torch.randint(0, 1000, (2 * 64 * 7,)), 7 * torch.arange(129), weights)
                    vectors.backward(torch.randn_like(vectors))
                    found.update(vectors.detach().numpy().tobytes())
print(*(name for name in LOOKUP_KERNELS if name in os.environ), found.hexdigest())
"""


def test_the_kernels_that_fetch_ahead_give_the_same_bits_and_may_be_refused():
    """Vectors of three steps, so what the backward pass wrote as well: fp16 and fp32, sums and means, with weights."""
    others = {name: value for name, value in os.environ.items() if name not in LOOKUP_KERNELS}
    found = [
        subprocess.run([sys.executable, "-c", KERNELS], env=others | given, capture_output=True, text=True, check=True)
        for given in ({}, {"FBGEMM_NO_AUTOVEC": "1"})
    ]
    (chosen, bits), (refused, expected) = (done.stdout.split() for done in found)
    assert (chosen, refused) == ("FBGEMM_FORCE_AUTOVEC", "FBGEMM_NO_AUTOVEC")
    assert bits == expected
