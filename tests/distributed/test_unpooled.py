"""Sequences looked up as bags of one id: the vectors and updates of FBGEMM's unpooled kernel."""

from __future__ import annotations

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.distributed.cpu_lookup import bags_of_one

ROWS, DIM = 7, 4


def tables(count: int, pooling: PoolingMode) -> SplitTableBatchedEmbeddingBagsCodegen:
    specs = [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)] * count
    made = SplitTableBatchedEmbeddingBagsCodegen(
        specs,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        weights_precision=SparseType.FP32,
        learning_rate=0.5,
        pooling_mode=pooling,
    )
    for i, weight in enumerate(made.split_embedding_weights()):
        weight.copy_(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(i)))
    return made


@pytest.mark.parametrize(
    "lengths",
    [
        [[2, 0, 3]],
        [[1, 1, 1], [5, 0, 2]],
        [[0, 0, 0], [1, 0, 0], [2, 2, 2]],
        [[0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ],
)
def test_vectors_and_updates_are_those_of_the_unpooled_kernel(lengths: list[list[int]]) -> None:
    """Ids repeat, features have unlike numbers of ids, or none at all."""
    total = sum(map(sum, lengths))
    ids = torch.randint(ROWS, (total,), generator=torch.Generator().manual_seed(9))
    keys = [f"f_{i}" for i in range(len(lengths))]
    features = KeyedJaggedTensor(keys, ids, lengths=torch.tensor(lengths).flatten())
    fast, plain = tables(len(lengths), PoolingMode.SUM), tables(len(lengths), PoolingMode.NONE)
    before = torch.cat(plain.split_embedding_weights()).clone()
    table = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor([sum(each) for each in lengths]))
    weigh = torch.rand(total, DIM, generator=torch.Generator().manual_seed(5))
    for _ in range(3):
        found = bags_of_one(fast, features)
        expected = torch.cat(plain.split_embedding_weights())[table * ROWS + ids].clone()
        torch.testing.assert_close(found, expected)
        (found * weigh).sum().backward()
        if total:
            (plain(indices=ids, offsets=features.offsets()) * weigh).sum().backward()
    for mine, theirs in zip(fast.split_embedding_weights(), plain.split_embedding_weights(), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(fast.split_optimizer_states(), plain.split_optimizer_states(), strict=True):
        torch.testing.assert_close(mine[0], theirs[0])
    assert torch.equal(before, torch.cat(plain.split_embedding_weights())) == (total == 0)
