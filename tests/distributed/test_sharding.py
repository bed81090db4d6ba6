"""Sharded on real gloo ranks equals plain modules in one process."""

import pytest
import torch

from tests.support import placements
from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import (
    MATRIX,
    SCHEDULE,
    Trained,
    assert_same_training,
    batches,
    task_of,
    train_or_tell,
    train_plain,
    train_sharded,
)
from torchrec_xd.distributed.optimizers import DenseOptimizerSettings, OptimizerSettings, ScheduleSettings
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.schema import Schema


@pytest.mark.parametrize(("ranks", "name"), [(1, "sgd"), (1, "adagrad"), (2, "sgd")])
def test_sharded_training_equals_plain_training(tmp_path, ranks, name):
    content = schema_at(write_feed(tmp_path))
    expected = train_plain(Schema.model_validate(content), name, ranks)
    assert_same_training(run_ranks(ranks, train_sharded, content, name, ShardingSettings()), expected)


@pytest.mark.parametrize(("ranks", "name"), [(1, "placements"), (2, "placements"), (2, "placements_extended")])
def test_exit_trains_sharded_as_it_does_plain(tmp_path, ranks, name):
    """Losses divide by each rank's rows, which are equally many: the mean over ranks is the mean over all rows."""
    content = {**placements.schema_at(placements.write_placements(tmp_path)), "name": name}
    expected = train_plain(Schema.model_validate(content), "adagrad", ranks)
    assert_same_training(run_ranks(ranks, train_sharded, content, "adagrad", ShardingSettings()), expected)


SEQUENCES = ("table_wise", "column_wise", "row_wise")
OPTIMIZERS = ("adagrad", "rowwise_adagrad")
CASES = [
    (kinds, name) for kinds in MATRIX for name in OPTIMIZERS if name == "adagrad" or "column_wise" not in "".join(kinds)
]
"""A column shard's row-wise rate is its own, by design."""


def train_each(rank: int, content: dict) -> list[Trained | str]:
    """Starting processes takes longer than training: one start for all cases, each with its own outcome."""
    return [train_or_tell(rank, content, *case) for case in CASES]


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def matrix(request, tmp_path_factory):
    """What all ranks found in each case, beside the plain model's. Columns of 64: torchrec cuts no less than 32."""
    ranks = request.param
    content = {**schema_at(write_feed(tmp_path_factory.mktemp("feed"))), "dim": 64}
    found = run_ranks(ranks, train_each, content, timeout=150)
    plain = {name: train_plain(Schema.model_validate(content), name, ranks) for name in OPTIMIZERS}
    return {case: ([one[i] for one in found], plain[case[1]]) for i, case in enumerate(CASES)}


@pytest.mark.parametrize(("kinds", "name"), CASES)
def test_every_sharding_type_trains_as_the_plain_model_does(matrix, kinds, name):
    found, plain = matrix[kinds, name]
    assert all(isinstance(one, Trained) for one in found), found[0]
    assert any(key.endswith(".weight/sum") for key in plain.states)
    assert any(key.endswith("/exp_avg_sq") for key in plain.states)
    assert_same_training(found, plain)


def test_the_schedule_by_hand():
    assert [SCHEDULE.factor(step, 6) for step in range(6)] == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625]
    cosine = ScheduleSettings(decay="cosine")
    assert [round(cosine.factor(step, 4), 3) for step in range(4)] == [1.0, 0.854, 0.5, 0.146]
    assert ScheduleSettings().factor(10**9, 1) == 1.0


def clip_each(rank: int, content: dict, norms: list[float | None]) -> list[float]:
    return [clip(rank, Schema.model_validate(content), norm) for norm in norms]


def clip(rank: int, schema: Schema, norm: float | None) -> float:
    dense = DenseOptimizerSettings(lr=1e-9, clip_norm=norm)
    model, optimizers = sharded(task_of(schema), OptimizerSettings(dense=dense), processes_of(rank))
    optimizers.set_lr(0, 1)
    optimizers.zero_grad()
    model(batches(schema, 0, 1)[0]).total_loss().backward()
    optimizers.step()
    gradients = [p.grad.norm() for key, p in model.named_parameters() if p.grad is not None and "t_" not in key]
    return torch.stack(gradients).norm().item()


def test_clipping_bounds_the_norm_of_all_dense_gradients_together(tmp_path):
    content = schema_at(write_feed(tmp_path))
    [[free, bound]] = run_ranks(1, clip_each, content, [None, 0.01])
    assert free > 0.01
    assert bound == pytest.approx(0.01, rel=1e-3)
