"""Every rank draws numbers of its own: dropout keeps other units on each."""

import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of
from torchrec_xd.config import RunConfig
from torchrec_xd.settings import validate
from torchrec_xd.training.building import build_sharded

ROW_WISE = {"types": ["row_wise"]}
"""Under this plan both ranks fill equal shards."""


def kept_units(rank: int, content: dict) -> list[float]:
    processes = processes_of(rank)
    model, _ = build_sharded(validate(RunConfig, content, "test"), processes)
    assert model.training
    return torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()


def content_of(tmp_path, **changes):
    return {
        "schema": schema_at(write_feed(tmp_path / "feed", rows=64)),
        "model": {"name": "single", "widths": [4], "dropout": 0.5},
        "domains": ["post"],
        "sharding": ROW_WISE,
        **changes,
    }


def test_dropout_differs_by_rank_and_by_seed_and_is_the_same_every_time(tmp_path):
    content = content_of(tmp_path)
    first, second = run_ranks(2, kept_units, content, timeout=120)
    assert first != second
    assert run_ranks(2, kept_units, content, timeout=120) == [first, second]
    other = run_ranks(2, kept_units, {**content, "seed": 1}, timeout=120)
    assert not {tuple(units) for units in other} & {tuple(first), tuple(second)}
