"""What ranks exchange in fewer bits: how far from fp32, in each direction alone and over several steps of training."""

import re
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import gathered, placed, settings, task_of
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.training.train_run import train

STEPS = 6
ERROR = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-7}
"""Largest relative error of a rounded number; of int8, of a vector of normal numbers (32 share a scale)."""
TRIED = {
    "table_wise": ("fp16", "bf16", "int8"),
    "row_wise": ("fp16", "bf16", "int8"),
    "column_wise": ("fp16", "int8"),  # exchanged as table_wise is
}
PAIRS = [(kind, precision) for kind, precisions in TRIED.items() for precision in precisions]
CASES = [
    *((kind, precision, precision) for kind, precisions in TRIED.items() for precision in ("fp32", *precisions)),
    ("table_wise", "fp16", "fp32"),
]


class Measured(NamedTuple):
    """Of one placement and one pair of precisions, on rank 0."""

    looked_up: torch.Tensor
    """Vectors of the first batch."""
    moved: torch.Tensor
    """How far one step along fixed gradients of these vectors moves all table weights."""
    trained: torch.Tensor
    """How far some steps of training move them from there."""
    losses: list[float]


def measure_each(rank: int, content: dict[str, Any], cases: list[tuple[str, str, str]]) -> list[Measured]:
    return [measure(rank, content, *case) for case in cases]


def measure(rank: int, content: dict[str, Any], kind: str, forward: str, backward: str) -> Measured:
    schema, world = Schema.model_validate(content), processes_of(rank)
    placement = placed(schema, "table_wise" if (kind, forward) == ("row_wise", "int8") else kind, kind)
    communication = CommunicationSettings(forward=forward, backward=backward)
    placement = placement.model_copy(update={"communication": communication})
    model, optimizers = sharded(task_of(schema), settings("sgd"), world, placement)

    def tables() -> torch.Tensor:
        held = {key: gathered(value, world) for key, value in model.state_dict().items() if ".t_" in key}
        return torch.cat([held[key].flatten() for key in sorted(held)])

    batch = next(Loader(schema, LoaderSettings(batch_size=32), "train", ShardSpec(rank, world.size)).batches())
    first, embeddings = tables(), model.module.embeddings
    optimizers.set_lr(0, STEPS)
    optimizers.zero_grad()
    bags = embeddings.bags(batch.bags).to_dict()
    sequences = dict(embeddings.sequences(batch.sequences).items())
    vectors = [bags[key] for key in sorted(bags)] + [sequences[key].values() for key in sorted(sequences)]
    looked_up = torch.cat([vector.flatten() for vector in vectors])
    (looked_up * torch.randn(len(looked_up), generator=torch.Generator().manual_seed(rank))).sum().backward()
    moved, losses = tables(), []
    for _ in range(STEPS):
        optimizers.set_lr(STEPS, STEPS)
        optimizers.zero_grad()
        loss = model(batch).total_loss()
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    return Measured(looked_up.detach(), moved - first, tables() - moved, losses)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Vectors of 64, so that column shards are the 32 wide that int8 needs."""
    return {**schema_at(write_feed(tmp_path_factory.mktemp("feed"))), "dim": 64}


@pytest.fixture(scope="module")
def measured(content):
    found, _ = run_ranks(2, measure_each, content, CASES, timeout=120)
    return dict(zip(CASES, found, strict=True))


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
def test_fewer_bits_cost_what_their_rounding_says(measured, kind, precision):
    """Row-wise: of bags and sequences; int8, which cannot be summed, of sequences alone."""
    found, exact = measured[kind, precision, precision], measured[kind, "fp32", "fp32"]
    for value, expected in ((found.looked_up, exact.looked_up), (found.moved, exact.moved)):
        assert ERROR[precision] / 8 < relative(value, expected) < ERROR[precision]
    assert relative(found.trained, exact.trained) < 10 * ERROR[precision]  # Adam makes more of small gradients' errors
    learnt = exact.losses[0] - exact.losses[-1]
    assert learnt > 0.02
    assert found.losses[0] - found.losses[-1] == pytest.approx(learnt, rel=4 * ERROR[precision])


def test_each_direction_has_a_precision_of_its_own(measured):
    pairs = (("fp16", "fp32"), ("fp32", "fp32"), ("fp16", "fp16"))
    found, exact, half = (measured[("table_wise", *pair)] for pair in pairs)
    assert torch.equal(found.looked_up, half.looked_up)
    assert torch.equal(found.moved, exact.moved)
    assert not torch.equal(half.moved, exact.moved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"types": ["row_wise"], "communication": {"forward": "int8"}},
            [r"table 't_\w+' \(row_wise\): bags .* summed", "fp32, fp16 or bf16", "sharding.types"],
        ),
        (
            {"communication": {"backward": "int8"}},
            [r"table 't_\w+' \(table_wise\): its shards are 4 columns wide", "a multiple of 32", "fp32, fp16 or bf16"],
        ),
    ],
)
def test_what_int8_cannot_carry_is_refused_before_anything_is_written(tmp_path, change, said):
    schema = schema_at(write_feed(tmp_path / "feed"))
    content = {"schema": schema, "model": {"name": "single"}, "domains": ["post"], "sharding": change}
    config = validate(RunConfig, content, "test")
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    for part in said:
        assert re.search(part, str(error.value)), error.value
    assert not (tmp_path / "run").exists()


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(UserError, match=r"forward': Input should be 'fp32', 'fp16', 'bf16' or 'int8' \(got 'fp8'\)"):
        validate(CommunicationSettings, {"forward": "fp8"}, "test")
