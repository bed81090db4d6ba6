"""Some steps of training, sharded on ranks and as plain modules in one process, to be compared."""

import traceback
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torchrec.optim import RowWiseAdagrad

from tests.support.placements import SETTINGS
from tests.support.sharded import processes_of, sharded
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.optimizers import (
    DenseOptimizerSettings,
    OptimizerSettings,
    ScheduleSettings,
    TableOptimizerSettings,
)
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models.exit import build_exit
from torchrec_xd.models.exit_settings import ExitSettings
from torchrec_xd.models.mkt import PretrainSettings, build_pretrain
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.schema import Schema

STEPS = 3


SEARCH = {**SETTINGS["sources"]["search"], "own": "click@search"}


MODEL = PretrainSettings(expert_widths=(8, 6), aligned_dim=4, tower_widths=(4,), gamma=0.0)


EXIT = ExitSettings(**{**SETTINGS, "sources": {**SETTINGS["sources"], "search": SEARCH}})


EXITS = {
    "placements": EXIT,
    "placements_extended": EXIT.model_copy(
        update={"transfer_on": "transfer", "transfer_error": "cross_entropy", "scene_to_towers": True}
    ),
}
"""By name of the schema."""


SCHEDULE = ScheduleSettings(warmup_steps=2, decay="linear", final=0.5)


def settings(name):
    return OptimizerSettings(
        tables=TableOptimizerSettings(name=name, lr=0.1),
        dense=DenseOptimizerSettings(lr=0.01, weight_decay=0.1),
        schedule=SCHEDULE,
    )


def task_of(schema):
    """MKT's first stage, or EXIT where the schema is one of its."""
    torch.manual_seed(0)
    build, model = (build_exit, EXITS[schema.name]) if schema.name in EXITS else (build_pretrain, MODEL)
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
    world = processes_of(rank)
    model, optimizers = sharded(task_of(schema), settings(name), world, placement)
    forward = []
    for step, batch in enumerate(batches(schema, rank, world.size)):
        optimizers.set_lr(step, STEPS)
        optimizers.zero_grad()
        output = model(batch)
        forward.append(outputs_of(output))
        output.total_loss().backward()
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


def outputs_of(output):
    """Loss and scores, by name."""
    scores = {name: score.detach().clone() for name, score in output.score.items()}
    return {"loss": output.total_loss().detach().clone(), **scores}


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
        forward += [outputs_of(one) for one in done]
        (sum(one.total_loss() for one in done) / ranks).backward()
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
    """On every rank: scores and losses before each step, and what weights and optimizer states are after the last."""
    for rank, trained in enumerate(found):
        for step, one in enumerate(trained.forward):
            assert_same(one, expected.forward[step * len(found) + rank])
        assert_same(trained.weights, expected.weights)
        assert_same(trained.states, expected.states)


BAGS = ("table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel")
MATRIX = [
    ("table_wise", "table_wise"),
    ("column_wise", "column_wise"),
    ("table_column_wise", "row_wise"),
    ("row_wise", "row_wise"),
    ("data_parallel", "table_wise"),
]
"""Sharding types of bags and of sequences."""


def placed(schema, bags, sequences):
    """A sharding type for each collection."""
    kinds = {table.name: sequences if table.sequential else bags for table in schema.tables()}
    constraints = tuple(Constraint(tables=(name,), sharding_types=(kind,)) for name, kind in kinds.items())
    return ShardingSettings(types=BAGS, constraints=constraints)


def train_or_tell(rank: int, content: dict, kinds: tuple[str, str], name: str) -> Trained | str:
    try:
        return train_sharded(rank, content, name, placed(Schema.model_validate(content), *kinds))
    except Exception:  # on all ranks, or others wait and the time runs out
        return traceback.format_exc()
