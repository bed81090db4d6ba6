"""Sharded on real gloo ranks equals plain modules in one process."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torchrec.optim import RowWiseAdagrad

from tests import placements
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded import sharded, world_of
from tests.feeds import schema_at, write_feed
from tests.placements import SETTINGS
from tests.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import Share
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models.exit import ExitSettings, build_exit
from torchrec_xd.models.mkt import PretrainSettings, build_pretrain
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.planner.constraints import Constraint
from torchrec_xd.schema import Schema
from torchrec_xd.sharding import (
    DenseOptimizerSettings,
    OptimizerSettings,
    ScheduleSettings,
    TableOptimizerSettings,
)

STEPS = 3
SEARCH = {**SETTINGS["sources"]["search"], "own": "click@search"}
MODEL = PretrainSettings(expert_widths=(8, 6), aligned_dim=4, tower_widths=(4,), gamma=0.0)
EXIT = ExitSettings(**{**SETTINGS, "sources": {**SETTINGS["sources"], "search": SEARCH}})
SCHEDULE = ScheduleSettings(warmup_steps=2, decay="linear", final=0.5)


def settings(name):
    return OptimizerSettings(
        tables=TableOptimizerSettings(name=name, lr=0.1),
        dense=DenseOptimizerSettings(lr=0.01, weight_decay=0.1),
        schedule=SCHEDULE,
    )


def task_of(schema):
    """MKT's first stage, or EXIT where the schema is its."""
    torch.manual_seed(0)
    build, model = (build_exit, EXIT) if schema.name == "placements" else (build_pretrain, MODEL)
    return build(schema, model, EmbeddingSettings(init_std=0.3), seed=0)


def batches(schema, rank, ranks):
    loader = Loader(schema, LoaderSettings(batch_size=64 // ranks), "train", Share(rank, ranks, seed=0))
    return [batch for batch, _ in zip(loader.batches(), range(STEPS), strict=False)]


def train_sharded(rank: int, content: dict, name: str, placement: ShardingSettings) -> dict[str, torch.Tensor]:
    schema = Schema.model_validate(content)
    world = world_of(rank)
    model, optimizers = sharded(task_of(schema), settings(name), world, placement)
    for step, batch in enumerate(batches(schema, rank, world.size)):
        optimizers.begin(step, STEPS)
        loss, _ = model(batch)
        loss.backward()
        optimizers.step()
    return {key: gathered(value, world) for key, value in model.state_dict().items()}


def gathered(value, world):
    """A whole tensor from its shards, on every rank."""
    if not hasattr(value, "local_shards"):
        return value.clone()
    whole = torch.zeros(value.size())
    for piece in value.local_shards():
        (r, c), (h, w) = piece.metadata.shard_offsets, piece.metadata.shard_sizes
        whole[r : r + h, c : c + w] = piece.tensor
    dist.all_reduce(whole, group=world.group)
    return whole


def train_plain(schema: Schema, name: str, ranks: int) -> dict[str, torch.Tensor]:
    """The reference: autograd on plain tables, torch's own optimizers, gradients averaged over the ranks' batches."""
    task = materialise(task_of(schema))
    tables = [p for key, p in task.named_parameters() if "t_" in key]
    dense = [p for key, p in task.named_parameters() if "t_" not in key]
    eps = TableOptimizerSettings().eps
    kinds = {
        "sgd": torch.optim.SGD,
        "adagrad": partial(torch.optim.Adagrad, eps=eps),
        "rowwise_adagrad": partial(RowWiseAdagrad, eps=eps),
    }
    both = [kinds[name](tables, lr=0.1), torch.optim.AdamW(dense, lr=0.01, weight_decay=0.1)]
    shares = [batches(schema, rank, ranks) for rank in range(ranks)]
    for step, parts in enumerate(zip(*shares, strict=True)):
        for optimizer, rate in zip(both, (0.1, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = rate * SCHEDULE.factor(step, STEPS)
            optimizer.zero_grad()
        loss = sum(task(part)[0] for part in parts) / ranks
        loss.backward()
        for optimizer in both:
            optimizer.step()
    return {key: value.detach() for key, value in task.state_dict().items()}


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("ranks", "name"), [(1, "sgd"), (1, "adagrad"), (2, "sgd"), (2, "adagrad")])
def test_sharded_training_equals_plain_training(tmp_path, ranks, name):
    content = schema_at(write_feed(tmp_path))
    expected = train_plain(Schema.model_validate(content), name, ranks)
    for weights in run_ranks(ranks, train_sharded, content, name, ShardingSettings()):
        assert_same(weights, expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_exit_trains_sharded_as_it_does_plain(tmp_path, ranks):
    """Losses divide by each rank's rows, which are equally many: the mean over ranks is the mean over all rows."""
    content = placements.schema_at(placements.write_placements(tmp_path))
    expected = train_plain(Schema.model_validate(content), "adagrad", ranks)
    for weights in run_ranks(ranks, train_sharded, content, "adagrad", ShardingSettings()):
        assert_same(weights, expected)


BAGS = ("table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel")
SEQUENCES = ("table_wise", "column_wise", "row_wise")
MATRIX = [(kind, "table_wise") for kind in BAGS] + [("table_wise", kind) for kind in SEQUENCES[1:]]


def placed(schema, bags, sequences):
    """A sharding type for each collection."""
    kinds = {table.name: sequences if table.sequential else bags for table in schema.tables()}
    constraints = tuple(Constraint(tables=(name,), sharding_types=(kind,)) for name, kind in kinds.items())
    return ShardingSettings(types=BAGS, constraints=constraints)


def train_with_each(rank: int, content: dict, names: list[str], placement: ShardingSettings) -> list[dict]:
    """Starting processes takes longer than training: one start for all optimizers."""
    return [train_sharded(rank, content, name, placement) for name in names]


@pytest.mark.parametrize(("bags", "sequences"), MATRIX)
def test_every_sharding_type_trains_as_the_plain_model_does(tmp_path, bags, sequences):
    """Columns of 64, of which torchrec cuts no less than 32; a column shard's row-wise rate is its own, by design."""
    content = {**schema_at(write_feed(tmp_path)), "dim": 64}
    schema = Schema.model_validate(content)
    names = ["sgd", "adagrad"] if "column_wise" in bags + sequences else ["sgd", "adagrad", "rowwise_adagrad"]
    expected = [train_plain(schema, name, 2) for name in names]
    for found in run_ranks(2, train_with_each, content, names, placed(schema, bags, sequences)):
        for weights, plain in zip(found, expected, strict=True):
            assert_same(weights, plain)


def test_the_schedule_by_hand():
    assert [SCHEDULE.factor(step, 6) for step in range(6)] == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625]
    cosine = ScheduleSettings(decay="cosine")
    assert [round(cosine.factor(step, 4), 3) for step in range(4)] == [1.0, 0.854, 0.5, 0.146]
    assert ScheduleSettings().factor(10**9, 1) == 1.0


def clip(rank: int, content: dict, norm: float | None) -> float:
    schema = Schema.model_validate(content)
    dense = DenseOptimizerSettings(lr=1e-9, clip_norm=norm)
    model, optimizers = sharded(task_of(schema), OptimizerSettings(dense=dense), world_of(rank))
    optimizers.begin(0, 1)
    model(batches(schema, 0, 1)[0])[0].backward()
    optimizers.step()
    gradients = [p.grad.norm() for key, p in model.named_parameters() if p.grad is not None and "t_" not in key]
    return torch.stack(gradients).norm().item()


def test_clipping_bounds_the_norm_of_all_dense_gradients_together(tmp_path):
    content = schema_at(write_feed(tmp_path))
    [free], [bound] = run_ranks(1, clip, content, None), run_ranks(1, clip, content, 0.01)
    assert free > 0.01
    assert bound == pytest.approx(0.01, rel=1e-3)
