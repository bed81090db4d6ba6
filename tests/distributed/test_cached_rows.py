"""UVM caching keeps copies of rows on the GPU: what becomes of them, shown on a stand-in for FBGEMM's cache."""

from __future__ import annotations

import pytest
import torch

from tests.support.sharded import sharded_pretrain
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings, transfer
from torchrec_xd.distributed.lookups import forget_cached_rows, lookups_of
from torchrec_xd.private_names import lookup_kernels


class Cache:
    """Copies of all rows of a kernel, as FBGEMM's cache has them of some: lookups and updates see these alone."""

    def __init__(self, kernel, monkeypatch) -> None:
        self.tables = kernel.split_embedding_weights()
        self.names = [table.name for table in kernel.config.embedding_tables]
        self.copies = None
        monkeypatch.setattr(kernel.emb_module, "flush", self.flush)
        monkeypatch.setattr(kernel.emb_module, "reset_cache_states", self.reset)

    def update(self, value: float) -> None:
        """What training does to rows that are in the cache."""
        self.copies = [torch.full_like(table, value) for table in self.tables]

    def flush(self) -> None:
        for table, copy in zip(self.tables, self.copies or [], strict=False):
            table.copy_(copy)

    def reset(self) -> None:
        self.copies = None

    def values(self) -> dict[str, set[float]]:
        """What lookups would find: the distinct numbers of every table."""
        seen = self.copies or self.tables
        return {name: set(table.flatten().tolist()) for name, table in zip(self.names, seen, strict=True)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with sharded_pretrain(tmp_path_factory.mktemp("feed")) as found:
        yield found


@pytest.fixture
def caches(trained, monkeypatch):
    """One for each kernel, of bags and of sequences."""
    lookups = list(lookups_of(trained[0]))
    assert {pooled for _, pooled in lookups} == {True, False}
    return [Cache(kernel, monkeypatch) for lookup, _ in lookups for kernel in lookup_kernels(lookup)]


@pytest.fixture
def checkpoints(trained, caches, tmp_path):
    """Checkpoints of step 1, when all cached rows were 1; then all became 2."""
    model, optimizers, schema, processes = trained
    for cache in caches:
        cache.update(1.0)
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(), processes, schema.fingerprint())
    checkpoints.save(model, optimizers, LoaderState(0, 1), 1, None)
    for cache in caches:
        cache.update(2.0)
    return checkpoints


def looked_up(caches) -> dict[str, set[float]]:
    return {name: values for cache in caches for name, values in cache.values().items()}


def test_cached_rows_are_saved_and_a_loaded_checkpoint_is_what_is_looked_up(trained, caches, checkpoints):
    assert set.union(*looked_up(caches).values()) == {2.0}
    checkpoints.load(trained[0], checkpoints.last())
    assert set.union(*looked_up(caches).values()) == {1.0}
    assert {cache.copies for cache in caches} == {None}


def test_a_resumed_run_looks_up_what_was_saved(trained, caches, checkpoints):
    checkpoints.resume(trained[0], trained[1])
    assert set.union(*looked_up(caches).values()) == {1.0}


def test_rows_that_a_transfer_does_not_overwrite_keep_what_the_cache_held(trained, caches, checkpoints):
    model = trained[0]
    names = sorted(looked_up(caches))
    [key] = [name for name in model.state_dict() if name.endswith(f".{names[0]}.weight")]
    transfer(model, checkpoints.last(), {key: key}, ("",))
    assert looked_up(caches) == {names[0]: {1.0}, **{name: {2.0} for name in names[1:]}}


def test_fbgemm_without_a_cache_has_nothing_to_forget(trained):
    before = {name: value.clone() for name, value in trained[0].named_parameters()}
    forget_cached_rows(trained[0])
    assert all(torch.equal(value, before[name]) for name, value in trained[0].named_parameters())
