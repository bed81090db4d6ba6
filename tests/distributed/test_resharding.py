"""A checkpoint goes on under another plan, on another number of ranks."""

from pathlib import Path

import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import with_kinds, write_kinds
from tests.support.local_state import local
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import assert_same, batches, gathered, placed, settings, task_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings
from torchrec_xd.checkpoint.resharding import recut
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

pytestmark = pytest.mark.slow

BEFORE, AFTER = 2, 2
"""Steps before and after the move."""


def advance(model, optimizers, shares, steps):
    """Every rank trains on all rows of all `shares` of the steps, so that their number changes nothing."""
    for step in steps:
        optimizers.set_lr(step, BEFORE + AFTER)
        optimizers.zero_grad()
        model(shares[step]).total_loss().backward()
        optimizers.step()


def made(schema, rank, placement, name, folder):
    world = processes_of(rank)
    model, optimizers = sharded(task_of(schema), settings(name), world, placed(schema, *placement))
    return world, model, optimizers, Checkpoints(Path(folder), CheckpointSettings(), world, schema.fingerprint())


def write(rank: int, content: dict, folder: str, cases: list[tuple[str, tuple[str, str]]]) -> None:
    """Train some steps under each placement and save; equal batches on all ranks."""
    schema = Schema.model_validate(content)
    for name, placement in cases:
        _, model, optimizers, checkpoints = made(schema, rank, placement, name, f"{folder}/{name}_{placement}")
        advance(model, optimizers, steps_of(schema), range(BEFORE))
        checkpoints.save(model, optimizers, LoaderState(0, BEFORE), BEFORE, None)


def steps_of(schema):
    return (batches(schema, 0, 1) * 2)[: BEFORE + AFTER]


def go_on(rank: int, content: dict, folder: str, moves: list[tuple[str, tuple, tuple]]) -> list[dict]:
    """Weights after resuming each checkpoint under another placement and training on."""
    schema = Schema.model_validate(content)
    found = []
    for name, origin, placement in moves:
        world, model, optimizers, checkpoints = made(schema, rank, placement, name, f"{folder}/{name}_{origin}")
        assert checkpoints.resume(model, optimizers) is not None
        advance(model, optimizers, steps_of(schema), range(BEFORE, BEFORE + AFTER))
        found.append({key: gathered(value, world) for key, value in model.state_dict().items()})
    return found


def undisturbed(rank: int, content: dict, name: str) -> dict:
    schema = Schema.model_validate(content)
    world, model, optimizers, _ = made(schema, rank, ("table_wise", "table_wise"), name, "nowhere")
    advance(model, optimizers, steps_of(schema), range(BEFORE + AFTER))
    return {key: gathered(value, world) for key, value in model.state_dict().items()}


TW, RW, CW, DP = "table_wise", "row_wise", "column_wise", "data_parallel"
KINDS = [(TW, TW), (RW, RW), (CW, CW), (DP, TW)]
MOVES = [(origin, to) for origin in KINDS for to in KINDS if origin != to]


@pytest.mark.parametrize("ranks", [1, 4])
def test_what_two_ranks_wrote_goes_on_elsewhere_as_if_never_moved(tmp_path, ranks):
    """Adagrad, and row-wise Adagrad where its state is not a mixture of columns."""
    content = with_kinds({**schema_at(write_kinds(write_feed(tmp_path))), "dim": 64}, specific="post")
    cases = [("adagrad", kind) for kind in KINDS] + [("rowwise_adagrad", kind) for kind in KINDS]
    run_ranks(2, write, content, str(tmp_path), cases, timeout=240)
    if ranks == 1:  # where columns are not cut
        pairs = [(a, b) for a, b in MOVES if CW not in b]
    else:  # a round, as starting so many models on few cores takes long
        pairs = list(zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True))
    exact = [(a, b) for a, b in pairs if (CW, CW) not in (a, b)]
    moves = [("adagrad", a, b) for a, b in pairs] + [("rowwise_adagrad", a, b) for a, b in exact]
    [whole] = run_ranks(1, undisturbed, content, "adagrad")
    [row_wise] = run_ranks(1, undisturbed, content, "rowwise_adagrad")
    for found in run_ranks(ranks, go_on, content, str(tmp_path), moves, timeout=240):
        for (name, *_), weights in zip(moves, found, strict=True):
            assert_same(weights, whole if name == "adagrad" else row_wise)


def other_optimizer(rank: int, content: dict, folder: str) -> None:
    schema = Schema.model_validate(content)
    _, model, optimizers, checkpoints = made(schema, rank, (TW, TW), "adagrad", folder)
    before = local(model.state_dict())
    with pytest.raises(UserError, match=r"cannot go on with this optimizer:\n .*momentum1.*expected, None found"):
        checkpoints.resume(model, optimizers)
    after = local(model.state_dict())
    assert all(torch.equal(after[key], value) for key, value in before.items() if ".t_" in key)


def test_another_kind_of_optimizer_is_refused_before_anything_is_loaded(tmp_path):
    content = schema_at(write_feed(tmp_path))
    run_ranks(1, write, content, str(tmp_path), [("sgd", (TW, TW))])
    run_ranks(1, other_optimizer, content, f"{tmp_path}/sgd_{(TW, TW)}")


def test_row_states_of_column_shards_are_means_over_the_columns_that_they_cover():
    state = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert recut(state, 1).tolist() == [[2.0, 20.0]]
    assert recut(state, 2).tolist() == state.tolist()
    assert recut(state, 4).tolist() == [[1.0, 10.0], [1.0, 10.0], [3.0, 30.0], [3.0, 30.0]]
    thirds = recut(state, 3)
    torch.testing.assert_close(thirds[:, 0], torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(recut(thirds, 1), torch.tensor([[2.0, 20.0]]))
