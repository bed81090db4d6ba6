"""Sharded on real gloo ranks equals plain modules in one process."""

import traceback
from functools import partial
from typing import NamedTuple

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
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.optimizers import (
    DenseOptimizerSettings,
    OptimizerSettings,
    ScheduleSettings,
    TableOptimizerSettings,
)
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models.exit import ExitSettings, build_exit
from torchrec_xd.models.mkt import PretrainSettings, build_pretrain
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.schema import Schema

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
    loader = Loader(schema, LoaderSettings(batch_size=64 // ranks), "train", ShardSpec(rank, ranks, seed=0))
    return [batch for batch, _ in zip(loader.batches(), range(STEPS), strict=False)]


class Trained(NamedTuple):
    """Of some steps."""

    forward: list[dict[str, torch.Tensor]]
    """Scores and loss of each step, before it; of the plain model rank by rank, one step after the other."""
    weights: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]
    """Optimizer states by name of weight and state, flat; (row-wise) Adagrad's is called `sum`."""


def train_sharded(rank: int, content: dict, name: str, placement: ShardingSettings) -> Trained:
    schema = Schema.model_validate(content)
    world = world_of(rank)
    model, optimizers = sharded(task_of(schema), settings(name), world, placement)
    forward = []
    for step, batch in enumerate(batches(schema, rank, world.size)):
        optimizers.begin(step, STEPS)
        loss, output = model(batch)
        forward.append(said(loss, output))
        loss.backward()
        optimizers.step()
    weights = {key: gathered(value, world) for key, value in model.state_dict().items()}
    return Trained(forward, weights, gathered_states(optimizers, world))


def gathered_states(optimizers, world):
    """Whole states: a table's lie on the ranks that hold some of it, and no other rank knows of them."""
    mine = {}
    for key, parts in optimizers.state.state_dict()["state"].items():
        for part, value in parts.items():
            name = f"{key.partition('.')[2]}/{part.rpartition('.')[2].replace('momentum1', 'sum')}"
            mine[name] = (value.metadata().size, pieces(value)) if hasattr(value, "local_shards") else value
    whole = {}
    for held in [*world.all_gather_object(mine), mine]:  # its own last, where all have the whole
        for name, value in held.items():
            if isinstance(value, tuple):
                for where, piece in value[1]:
                    whole.setdefault(name, torch.full(value[0], torch.nan))[where] = piece
            else:
                whole[name] = value.clone()
    return {name: value.flatten() for name, value in whole.items() if not name.endswith("/step")}


def pieces(value):
    """Where each local shard lies in the whole, and what it holds."""
    found = [(piece.metadata.shard_offsets, piece.metadata.shard_sizes, piece.tensor) for piece in value.local_shards()]
    return [(tuple(slice(o, o + n) for o, n in zip(at, size, strict=True)), tensor) for at, size, tensor in found]


def said(loss, output):
    return {"loss": loss.detach().clone(), **{name: score.detach().clone() for name, score in output.score.items()}}


def gathered(value, world):
    """A whole tensor from its shards, on every rank."""
    if not hasattr(value, "local_shards"):
        return value.clone()
    whole = torch.zeros(value.metadata().size)
    for where, piece in pieces(value):
        whole[where] = piece
    dist.all_reduce(whole, group=world.group)
    return whole


def train_plain(schema: Schema, name: str, ranks: int) -> Trained:
    """The reference: autograd on plain tables, torch's own optimizers, gradients averaged over the ranks' batches."""
    task = materialise(task_of(schema))
    parameters = dict(task.named_parameters())
    tables = [p for key, p in parameters.items() if "t_" in key]
    dense = [p for key, p in parameters.items() if "t_" not in key]
    eps = TableOptimizerSettings().eps
    kinds = {
        "sgd": torch.optim.SGD,
        "adagrad": partial(torch.optim.Adagrad, eps=eps),
        "rowwise_adagrad": partial(RowWiseAdagrad, eps=eps),
    }
    both = [kinds[name](tables, lr=0.1), torch.optim.AdamW(dense, lr=0.01, weight_decay=0.1)]
    shares = [batches(schema, rank, ranks) for rank in range(ranks)]
    forward = []
    for step, parts in enumerate(zip(*shares, strict=True)):
        for optimizer, rate in zip(both, (0.1, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = rate * SCHEDULE.factor(step, STEPS)
            optimizer.zero_grad()
        done = [task(part) for part in parts]
        forward += [said(*one) for one in done]
        (sum(loss for loss, _ in done) / ranks).backward()
        for optimizer in both:
            optimizer.step()
    states = {
        f"{key}/{part}": value.flatten()
        for key, parameter in parameters.items()
        for optimizer in both
        for part, value in optimizer.state.get(parameter, {}).items()
        if part in ("sum", "exp_avg", "exp_avg_sq")
    }
    return Trained(forward, {key: value.detach() for key, value in task.state_dict().items()}, states)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def assert_same_training(found: list[Trained], expected: Trained):
    """On every rank: what was said before each step, and what weights and optimizer states are after the last."""
    for rank, trained in enumerate(found):
        for step, one in enumerate(trained.forward):
            assert_same(one, expected.forward[step * len(found) + rank])
        assert_same(trained.weights, expected.weights)
        assert_same(trained.states, expected.states)


@pytest.mark.parametrize(("ranks", "name"), [(1, "sgd"), (1, "adagrad"), (2, "sgd")])
def test_sharded_training_equals_plain_training(tmp_path, ranks, name):
    content = schema_at(write_feed(tmp_path))
    expected = train_plain(Schema.model_validate(content), name, ranks)
    assert_same_training(run_ranks(ranks, train_sharded, content, name, ShardingSettings()), expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_exit_trains_sharded_as_it_does_plain(tmp_path, ranks):
    """Losses divide by each rank's rows, which are equally many: the mean over ranks is the mean over all rows."""
    content = placements.schema_at(placements.write_placements(tmp_path))
    expected = train_plain(Schema.model_validate(content), "adagrad", ranks)
    assert_same_training(run_ranks(ranks, train_sharded, content, "adagrad", ShardingSettings()), expected)


BAGS = ("table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel")
SEQUENCES = ("table_wise", "column_wise", "row_wise")
MATRIX = [
    ("table_wise", "table_wise"),
    ("column_wise", "column_wise"),
    ("table_column_wise", "row_wise"),
    ("row_wise", "row_wise"),
    ("data_parallel", "table_wise"),
]
"""Sharding types of bags and of sequences: each of BAGS and of SEQUENCES."""
OPTIMIZERS = ("adagrad", "rowwise_adagrad")
CASES = [
    (kinds, name) for kinds in MATRIX for name in OPTIMIZERS if name == "adagrad" or "column_wise" not in "".join(kinds)
]
"""A column shard's row-wise rate is its own, by design."""


def placed(schema, bags, sequences):
    """A sharding type for each collection."""
    kinds = {table.name: sequences if table.sequential else bags for table in schema.tables()}
    constraints = tuple(Constraint(tables=(name,), sharding_types=(kind,)) for name, kind in kinds.items())
    return ShardingSettings(types=BAGS, constraints=constraints)


def train_each(rank: int, content: dict) -> list[Trained | str]:
    """Starting processes takes longer than training: one start for all cases, each with its own outcome."""
    return [train_or_tell(rank, content, *case) for case in CASES]


def train_or_tell(rank: int, content: dict, kinds: tuple[str, str], name: str) -> Trained | str:
    try:
        return train_sharded(rank, content, name, placed(Schema.model_validate(content), *kinds))
    except Exception:  # on all ranks, or others wait and the time runs out
        return traceback.format_exc()


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
    model, optimizers = sharded(task_of(schema), OptimizerSettings(dense=dense), world_of(rank))
    optimizers.begin(0, 1)
    model(batches(schema, 0, 1)[0])[0].backward()
    optimizers.step()
    gradients = [p.grad.norm() for key, p in model.named_parameters() if p.grad is not None and "t_" not in key]
    return torch.stack(gradients).norm().item()


def test_clipping_bounds_the_norm_of_all_dense_gradients_together(tmp_path):
    content = schema_at(write_feed(tmp_path))
    [[free, bound]] = run_ranks(1, clip_each, content, [None, 0.01])
    assert free > 0.01
    assert bound == pytest.approx(0.01, rel=1e-3)
