"""A run goes on with larger tables: old rows and their optimizer state stay bit for bit, whatever plan and ranks."""

from pathlib import Path

import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import with_kinds, write_kinds
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import batches, gathered, gathered_states, placed, settings, task_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings
from torchrec_xd.schema import Schema

TW, RW, CW, DP = "table_wise", "row_wise", "column_wise", "data_parallel"
pytestmark = pytest.mark.slow

MOVES = {
    1: [("rowwise_adagrad", (CW, CW), (RW, RW)), ("adagrad", (RW, RW), (DP, TW))],
    2: [
        ("rowwise_adagrad", (RW, RW), (CW, CW)),
        ("rowwise_adagrad", (CW, CW), (CW, CW)),
        ("rowwise_adagrad", (CW, CW), (DP, TW)),
        ("rowwise_adagrad", (DP, TW), (RW, RW)),
        ("adagrad", (DP, TW), (DP, TW)),
    ],
}
"""Ranks to table optimizer, and the sharding of bags and of sequences before (on two ranks) and after."""


def made(schema, rank, placement, name):
    world = processes_of(rank)
    model, optimizers = sharded(task_of(schema), settings(name), world, placed(schema, *placement))
    return world, model, optimizers


def checkpoints_of(schema, world, folder, case):
    return Checkpoints(Path(folder, f"{case}"), CheckpointSettings(), world, schema.fingerprint())


def write(rank, content, folder, cases):
    """A step of training under each placement, saved; weights and states."""
    schema, found = Schema.model_validate(content), {}
    for case in cases:
        world, model, optimizers = made(schema, rank, case[1], case[0])
        optimizers.set_lr(0, 3)
        optimizers.zero_grad()
        model(batches(schema, 0, 1)[0]).total_loss().backward()
        optimizers.step()
        checkpoints_of(schema, world, folder, case).save(model, optimizers, LoaderState(0, 1), 1, None)
        found[case] = parts_of(model, optimizers, world)
    return found


def parts_of(model, optimizers, world):
    return {key: gathered(value, world) for key, value in model.state_dict().items()}, gathered_states(
        optimizers, world
    )


def grow(rank, content, old, folder, moves):
    """What the grown tables hold at first, and when the checkpoint has been handed over to them."""
    schema, before = Schema.model_validate(content), Schema.model_validate(old)
    found = []
    for name, origin, placement in moves:
        world, model, optimizers = made(schema, rank, placement, name)
        fresh = {key: gathered(value, world) for key, value in model.state_dict().items()}
        checkpoints = checkpoints_of(before, world, folder, (name, origin))
        saved = checkpoints.hand_over(model, optimizers, checkpoints.last(), without=())
        assert saved.step == 1
        found.append((fresh, *parts_of(model, optimizers, world)))
    return found


def grown(content):
    """Every table twice as large: row states of two column shards are as many as those of one grown table."""
    features = [{**f, "rows": f["rows"] * 2} if "rows" in f else f for f in content["features"]]
    return {**content, "features": features}


@pytest.mark.parametrize("ranks", [1, 2])
def test_old_rows_stay_and_new_ones_begin_anew(tmp_path, ranks):
    content = with_kinds({**schema_at(write_kinds(write_feed(tmp_path, rows=64))), "dim": 64}, specific="post")
    moves = MOVES[ranks]
    cases = list(dict.fromkeys(move[:2] for move in moves))
    before = run_ranks(2, write, content, str(tmp_path), cases, timeout=240)[0]
    found = run_ranks(ranks, grow, grown(content), content, str(tmp_path), moves, timeout=240)
    tables = {key for key, value in before[cases[0]][0].items() if ".t_" in key and value.dim() == 2}
    for results in found:
        for (name, origin, _), (fresh, weights, states) in zip(moves, results, strict=True):
            old_weights, old_states = before[name, origin]
            assert weights.keys() == old_weights.keys()
            for key, old in old_weights.items():
                if key in tables:
                    assert len(old) < len(weights[key])
                    assert torch.equal(weights[key][: len(old)], old), key
                    assert torch.equal(weights[key][len(old) :], fresh[key][len(old) :]), key
                    assert weights[key][len(old) :].any()
                    check_state(states[f"{key}/sum"], old_states[f"{key}/sum"], len(old), len(weights[key]))
                else:
                    assert torch.equal(weights[key], old), key
                    same = [part for part in old_states if part.startswith(f"{key}/")]
                    assert all(torch.equal(states[part], old_states[part]) for part in same)


def check_state(state, old, rows, more):
    """Row states of column shards, whole or as their mean; or an entry for each weight."""
    assert old.any()
    if len(old) // rows == len(state) // more:
        state, old = state.view(-1, more), old.view(-1, rows)
        if len(old) > 2:  # an entry for each weight
            state, old = state.reshape(more, -1).T, old.reshape(rows, -1).T
        assert torch.equal(state[:, :rows], old)
    else:
        mean = old.view(-1, rows).double().mean(0).float()
        state = state.view(-1, more)
        torch.testing.assert_close(state.double().mean(0).float()[:rows], mean)
    assert not state[:, rows:].any()
