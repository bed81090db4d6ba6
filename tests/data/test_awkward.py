"""Data that does not divide: every row is read once, and every rank takes as many steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.numbered import Layout, users, write
from torchrec_xd.batch import Batch
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec


def read(root: Path, domains: list[Layout], ranks: int, batch_size: int) -> list[list[Batch]]:
    """An epoch of every rank."""
    schema, _ = write(root, domains)
    settings = LoaderSettings(batch_size=batch_size)
    loaders = [Loader(schema, settings, "train", ShardSpec(rank, ranks)) for rank in range(ranks)]
    found = [list(loader.batches()) for loader in loaders]
    assert [len(batches) for batches in found] == [loader.steps for loader in loaders]
    assert min(len(batch) for batches in found for batch in batches) >= loaders[0].smallest_batch
    return found


def rows(found: list[list[Batch]], domain: int) -> list[list[int]]:
    """The rows that each rank read of a domain."""
    return [[user for batch in batches for user in users(batch, domain)] for batches in found]


@pytest.mark.parametrize(
    ("domains", "steps"),
    [
        pytest.param([[[11]]], 2, id="more ranks than row groups"),
        pytest.param([[[], [5], [0], [6], [0, 0]]], 2, id="empty files and row groups between others"),
        pytest.param([[[1]], [[40, 60]]], 13, id="a domain of one row"),
        pytest.param([[[4]], [[41]]], 6, id="a last batch that is not full"),
    ],
)
def test_four_ranks_read_every_row_once_in_equally_many_steps(root: Path, domains: list[Layout], steps: int) -> None:
    found = read(root, domains, ranks=4, batch_size=2)
    assert [len(batches) for batches in found] == [steps] * 4
    for domain, layout in enumerate(domains):
        ranks = rows(found, domain)
        assert sorted(row for rank in ranks for row in rank) == list(range(sum(map(sum, layout))))
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_a_domain_of_one_row_is_in_one_batch_of_one_rank(root: Path) -> None:
    found = read(root, [[[1]], [[100]]], ranks=2, batch_size=10)
    with_it = [(rank, batch) for rank, batches in enumerate(found) for batch in batches if users(batch, 0)]
    ((_, batch),) = with_it
    assert batch.offsets == (0, 1, len(batch))
    without = [batch for batches in found for batch in batches if not users(batch, 0)]
    assert {batch.offsets[:2] for batch in without} == {(0, 0)}
    assert min(len(batch) for batch in without) == 50 // 6


def test_padding_is_one_row_of_nobody(root: Path) -> None:
    [empty], [_] = read(root, [[[1]]], ranks=2, batch_size=4)
    assert len(empty) == 0
    padded = empty.padding()
    assert len(padded) == padded.bags.stride() == padded.sequences.stride() == 1
    assert padded.offsets == (0, 1)
    for ids, given in ((padded.bags, empty.bags), (padded.sequences, empty.sequences)):
        assert ids.keys() == given.keys()
        assert ids.lengths().tolist() == [0] * len(ids.keys())
        assert ids.values().numel() == 0
    assert torch.equal(padded.weight_B, torch.zeros(1))
    assert (padded.dense_BN.shape, padded.label_BT.shape) == ((1, 0), (1, 1))
    assert padded.position == empty.position
