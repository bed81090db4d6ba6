"""Curricula: which domain gives how many rows in which epoch; resuming, ranks, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.numbered import content, users, write
from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError

SOURCES_FIRST = [{"epochs": 1, "shares": {"d0": 1}}]


def cut(curriculum: Any, batch_size: int = 10, window: int = 8) -> LoaderSettings:
    return LoaderSettings.model_validate({"batch_size": batch_size, "shuffle_rows": window, "curriculum": curriculum})


def epochs_of(read: list[list[Batch]], domain: int, epochs: int) -> list[list[int]]:
    """The users of a domain by epoch, of all ranks."""
    return [
        [user for batches in read for b in batches if b.position.epoch == epoch for user in users(b, domain)]
        for epoch in range(epochs)
    ]


def test_sources_first_by_hand(root: Path) -> None:
    """30 and 10 rows: an epoch of 40 rows of d0 alone, then every row once, twice."""
    schema, _ = write(root, [[[9, 9, 12]], [[10]]])
    loader = Loader(schema, cut(SOURCES_FIRST), "train")
    assert (loader.steps, loader.rows, loader.smallest_batch) == (4, 40, 9)
    read = [list(loader.batches(epochs=3))]
    assert [batch.offsets for batch in read[0][:4]] == [(0, 10, 10)] * 4
    first, *others = epochs_of(read, 0, 3)
    assert sorted(Counter(first).values()) == [1] * 20 + [2] * 10
    assert sorted(first[:30]) == list(range(30))
    assert [sorted(seen) for seen in others] == [list(range(30))] * 2
    assert [sorted(seen) for seen in epochs_of(read, 1, 3)] == [[], list(range(10)), list(range(10))]


def test_all_sources_first(root: Path) -> None:
    """30 and 20 rows of sources, 10 of the target: an epoch of 60 rows, 36 and 24 of the sources."""
    schema, _ = write(root, [[[30]], [[20]], [[10]]])
    roles = {name: {"role": "target" if name == "d2" else "source"} for name in schema.domains}
    domains = {name: domain.model_copy(update=roles[name]) for name, domain in schema.domains.items()}
    loader = Loader(schema.model_copy(update={"domains": domains}), cut([{"shares": "sources"}]), "train")
    read = [list(loader.batches(epochs=2))]
    assert [[len(seen) for seen in epochs_of(read, domain, 2)] for domain in range(3)] == [[36, 30], [24, 20], [0, 10]]
    targets = {name: domain.model_copy(update={"role": "target"}) for name, domain in schema.domains.items()}
    with pytest.raises(UserError, match=r"shares: sources, but no domain of this run is a source with rows \(d0, d1"):
        Loader(schema.model_copy(update={"domains": targets}), cut([{"shares": "sources"}]), "train")


def test_phases_of_several_epochs_and_shares_on_two_ranks(root: Path) -> None:
    """60 and 20 rows: 2 epochs of 20 + 60, 1 epoch of 80 + 0, then 60 + 20; every row as often as it must be."""
    schema, _ = write(root, [[[25, 35]], [[20]]])
    phases = [{"epochs": 2, "shares": {"d0": 1, "d1": 3}}, {"shares": {"d0": 5, "d1": 0}}]
    loaders = [Loader(schema, cut(phases), "train", ShardSpec(rank, 2)) for rank in range(2)]
    assert {(loader.steps, loader.rows) for loader in loaders} == {(4, 80)}
    read = [list(loader.batches(epochs=4)) for loader in loaders]
    d0, d1 = epochs_of(read, 0, 4), epochs_of(read, 1, 4)
    assert [len(seen) for seen in d0] == [20, 20, 80, 60]
    assert [len(seen) for seen in d1] == [60, 60, 0, 20]
    assert set(Counter(d0[0] + d0[1]).values()) == {1}  # 40 different rows of the first pass
    assert set(Counter(d1[0]).values()) == set(Counter(d1[1]).values()) == {3}
    assert sorted(Counter(d0[2]).values()) == [1] * 40 + [2] * 20  # a new pass, and a third of the next one
    assert [sorted(seen) for seen in (d0[3], d1[3])] == [list(range(60)), list(range(20))]
    assert all(8 <= len(batch) <= 12 for batches in read for batch in batches)


shares = st.sampled_from([0.0, 1.0, 2.5])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(4, 12), min_size=2, max_size=3),
    st.integers(1, 2),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 2), shares, shares).filter(lambda p: p[1] + p[2] > 0), min_size=1, max_size=2),
    st.data(),
)
def test_any_curriculum_keeps_epochs_ranks_and_resumes(
    root: Path, totals: list[int], world_size: int, batch_size: int, drawn: list[tuple[int, float, float]], data: Any
) -> None:
    schema, _ = write(root, [[[rows]] for rows in totals])
    phases = [{"epochs": epochs, "shares": {"d0": a, "d1": b}} for epochs, a, b in drawn]
    planned = sum(epochs for epochs, _, _ in drawn)
    loaders = [
        Loader(schema, cut(phases, batch_size, 5), "train", ShardSpec(rank, world_size)) for rank in range(world_size)
    ]
    read = [list(loader.batches(epochs=planned + 1)) for loader in loaders]
    for i, total in enumerate(totals):
        seen = epochs_of(read, i, planned + 1)
        assert sorted(seen[-1]) == list(range(total))  # afterwards, every row once
        epoch = 0
        for epochs, a, b in drawn:
            share = (a, b, 0.0)[i] / (a + b)
            assert all(abs(len(own) - share * sum(totals)) <= 1 for own in seen[epoch : epoch + epochs])
            # Rows come pass by pass: on one rank, no row once more often than another one.
            times = Counter(user for own in seen[epoch : epoch + epochs] for user in own)
            if world_size == 1 and times:
                assert max(times.values()) - min(times[user] for user in range(total)) <= 1
            epoch += epochs
    rank = data.draw(st.integers(0, world_size - 1))
    whole = [content(batch) for batch in read[rank]]
    done = data.draw(st.integers(0, len(whole)))
    start = whole[done - 1]["position"] if done else LoaderState(0, 0)
    assert [content(batch) for batch in loaders[rank].batches(start, epochs=planned + 1)] == whole[done:]


def test_a_phase_for_all_of_training_is_mixing(root: Path) -> None:
    schema, _ = write(root, [[[30]], [[10]]])
    shares = {"d0": 1.0, "d1": 2.0}
    mixed = Loader(schema, LoaderSettings(batch_size=7, mixing=shares), "train")
    phase = Loader(schema, cut([{"epochs": 3, "shares": shares}], 7, 262_144), "train")
    assert [content(batch) for batch in phase.batches(epochs=3)] == [content(b) for b in mixed.batches(epochs=3)]


def test_a_resumed_reader_does_not_read_what_is_past(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[100] * 10], [[10]]])
    loader = Loader(schema, cut(SOURCES_FIRST, 10, 100), "train", ShardSpec(shuffle=False))
    assert len(list(loader.batches(LoaderState(1, 91), epochs=2))) == 10
    assert sorted(read) == [0, 9]  # the last row group of d0, the only one of d1


def test_where_rows_of_a_phase_lie(root: Path) -> None:
    schema, _ = write(root, [[[30]], [[10]]])
    loader = Loader(schema, cut(SOURCES_FIRST), "train", ShardSpec(shuffle=False))
    file = f"{root}/d0/0.parquet"
    assert loader.sources(LoaderState(0, 4)) == [f"{file}: rows 0 to 7", f"{file}: rows 8 to 15"]
    assert loader.sources(LoaderState(1, 1)) == [f"{file}: rows 0 to 7", f"{root}/d1/0.parquet: rows 0 to 7"]


def test_evaluation_has_no_curriculum(root: Path) -> None:
    schema, _ = write(root, [[[9]], [[3]]])
    assert [batch.offsets for batch in Loader(schema, cut(SOURCES_FIRST, 20), "test").batches()] == [(0, 9, 12)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"d7": 1}, "curriculum: unknown domain 'd7'; the domains of this run are: d0, d1"),
        ({"d0": 1, "d1": 1e-9}, r"curriculum: the share 1e-09 of domain 'd1' comes to no row in an epoch of 12 rows"),
    ],
)
def test_shares_that_do_not_fit(root: Path, shares: dict[str, float], message: str) -> None:
    schema, _ = write(root, [[[9]], [[3]]])
    with pytest.raises(UserError, match=message):
        Loader(schema, cut([{"shares": shares}]), "train")


def test_a_domain_of_too_few_rows_may_be_left_out(root: Path) -> None:
    schema, _ = write(root, [[[9]], [[1]]])
    Loader(schema, cut([{"shares": {"d0": 1}}]), "train", ShardSpec(0, 2))
    with pytest.raises(UserError, match=r"curriculum: domain 'd1' has 1 rows for 2 ranks.*or leave curriculum out"):
        Loader(schema, cut([{"shares": {"d1": 1}}]), "train", ShardSpec(0, 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"curriculum": [{"shares": {"d0": 0}}]}, "give some domain a share above 0"),
        ({"curriculum": [{"shares": {}}]}, "give some domain a share above 0"),
        ({"curriculum": [{"shares": {"d0": -1}}]}, "greater than or equal to 0"),
        ({"curriculum": [{"epochs": 0, "shares": {"d0": 1}}]}, "greater than 0"),
        ({"curriculum": [{"shares": {"d0": 1}}], "mixing": {"d0": 1}}, "leave one out"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoaderSettings.model_validate(given)
