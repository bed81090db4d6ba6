"""Rows of new keys on ranks: drawn anew whatever the plan; and one vocabulary, however many processes make it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.raw_keys import raw_schema_at, write_raw
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import batches, gathered, gathered_states, placed, settings, task_of
from tests.support.small_models import weights
from torchrec_xd.config import RunConfig
from torchrec_xd.data.key_rows import mixed
from torchrec_xd.distributed.fresh_rows import FreshRows, draw, redraw
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.training.train_run import train

pytestmark = pytest.mark.slow

TW, RW, CW, DP = "table_wise", "row_wise", "column_wise", "data_parallel"
PLANS = [
    ("rowwise_adagrad", (RW, CW)),
    ("rowwise_adagrad", (CW, RW)),
    ("rowwise_adagrad", (DP, TW)),
    ("adagrad", (TW, CW)),
]
WEIGHTS = ("embeddings.bags.embedding_bags.t_user.weight", "embeddings.sequences.embeddings.t_item.weight")
ROWS = np.array([1, 2, 19, 20, 39])


def drawn(rank, content, cases):
    """Weights and states of a table after a step, and after some rows were drawn anew."""
    schema, found = Schema.model_validate(content), []
    for name, placement in cases:
        world = processes_of(rank)
        model, optimizers = sharded(task_of(schema), settings(name), world, placed(schema, *placement))
        optimizers.set_lr(0, 3)
        optimizers.zero_grad()
        model(batches(schema, 0, 1)[0]).total_loss().backward()
        optimizers.step()

        def parts(model=model, optimizers=optimizers, world=world):
            held = {key: gathered(value, world) for key, value in model.state_dict().items()}
            return held, gathered_states(optimizers, world)

        before = parts()
        for weight in WEIGHTS:
            redraw(model, optimizers, fresh_of(weight))
        found.append((before, parts()))
    return found


def fresh_of(weight):
    return FreshRows("t", weight, ROWS, mixed(ROWS.astype(np.uint64)), 0.3, 7)


def test_rows_are_drawn_anew_under_every_plan_and_others_stay(tmp_path):
    content = {**schema_at(write_feed(tmp_path, rows=64)), "dim": 64}
    expected = torch.from_numpy(draw(fresh_of("w"), mixed(ROWS.astype(np.uint64)), 64))
    for results in run_ranks(2, drawn, content, PLANS, timeout=240):
        for (before, states), (after, states_after) in results:
            for key, old in before.items():
                if key not in WEIGHTS:
                    assert torch.equal(after[key], old)
                    continue
                kept = np.setdiff1d(np.arange(len(old)), ROWS)
                assert torch.equal(after[key][ROWS], expected)
                assert torch.equal(after[key][kept], old[kept])
                name = f"{key}/sum"
                state, state_before = (each[name].view(-1, len(old)) for each in (states_after, states))
                if len(state) > 2:  # an entry for each weight
                    state, state_before = (each.reshape(len(old), -1).T for each in (state, state_before))
                assert state_before[:, ROWS].any()
                assert not state[:, ROWS].any()
                assert torch.equal(state[:, kept], state_before[:, kept])


def test_two_processes_make_the_vocabularies_of_one_and_go_on_with_its_rows(tmp_path):
    for day in (1, 2):
        write_raw(tmp_path / f"day{day}", day, users=(10 * day - 10, 10 * day + 20))

    def content(day):
        return {
            "schema": raw_schema_at(tmp_path / f"day{day}", expire=1),
            "model": {"name": "single", "widths": [8, 6]},
            "domains": ["post"],
            "loader": {"batch_size": 32},
            "optimizer": {"tables": {"lr": 1e-30}, "dense": {"lr": 1e-30}},
            "sharding": {"types": ["row_wise"]},
            "trainer": {"threads": 1},
            "evaluate_on": "train",
        }

    train(validate(RunConfig, content(1), "test"), tmp_path / "first")
    train(validate(RunConfig, content(2), "test"), tmp_path / "one", continue_from=tmp_path / "first")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content(2), sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m",
         "torchrec_xd.cli", "train", tmp_path / "run.yaml", "--run-dir", tmp_path / "two", "--continue-from",
         tmp_path / "first"],
        capture_output=True, check=False, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "one" / "vocabularies").iterdir())
    assert [file.name for file in files] == ["t_item.parquet", "t_user.parquet", "vocabularies.json"]
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / "vocabularies" / file.name).read_bytes()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-20)
