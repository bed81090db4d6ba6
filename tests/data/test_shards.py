"""Which rows a rank reads: exact cover, equal shares, windows, permutations, mixing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_xd.data.shards import Piece, RowGroup, Shard, ShardSpec, Window, mixed_rows
from torchrec_xd.errors import UserError

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def row_groups(rows: list[int]) -> tuple[RowGroup, ...]:
    starts = np.cumsum([0, *rows])
    return tuple(RowGroup("f", i, int(starts[i]), count) for i, count in enumerate(rows))


def rows_of_pass(shard: Shard, number: int) -> list[int]:
    """Rows of the file in the order in which one rank reads them in one pass."""
    rows: list[int] = []
    for window in shard.windows(number * shard.rows, (number + 1) * shard.rows):
        read = [
            row
            for piece in shard.pieces(window)
            for row in range(piece.row_group.first_row + piece.start, piece.row_group.first_row + piece.stop)
        ]
        assert len(read) == window.stop - window.first
        order = shard.order(window)
        rows += read if order is None else [read[i] for i in order]
    return rows


def test_two_ranks_by_hand() -> None:
    groups = row_groups([3, 2, 2])
    first, second = (Shard("d", groups, ShardSpec(rank, 2, shuffle=False), window_rows=2) for rank in (0, 1))
    assert (first.total_rows, first.rows, second.rows) == (7, 3, 4)
    assert list(first.windows(0, 3)) == [Window(0, 0, 2), Window(0, 2, 3)]
    assert first.pieces(Window(0, 2, 3)) == [Piece(groups[0], 2, 3)]
    assert second.pieces(Window(0, 0, 2)) == [Piece(groups[1], 0, 2)]
    # The stream goes on with the next pass: rows 4 to 8 of rank 1 are its rows 0 to 4 again.
    assert list(second.windows(3, 5)) == [Window(0, 2, 4), Window(1, 4, 6)]
    assert second.pieces(Window(1, 6, 8)) == [Piece(groups[2], 0, 2)]


def test_a_row_group_that_straddles_two_ranks_is_cut() -> None:
    groups = row_groups([5])
    shards = [Shard("d", groups, ShardSpec(rank, 2), window_rows=9) for rank in (0, 1)]
    assert [shard.pieces(shard.window_at(0)) for shard in shards] == [
        [Piece(groups[0], 0, 2)],
        [Piece(groups[0], 2, 5)],
    ]


@given(sizes, st.integers(1, 5), st.integers(1, 15), st.integers(0, 3), st.booleans())
def test_every_row_is_read_by_exactly_one_rank_in_each_pass(
    rows: list[int], world_size: int, window_rows: int, number: int, shuffle: bool
) -> None:
    shards = [
        Shard("d", row_groups(rows), ShardSpec(rank, world_size, 7, shuffle), window_rows) for rank in range(world_size)
    ]
    read = [rows_of_pass(shard, number) for shard in shards]
    joined = [row for part in read for row in part]
    assert sorted(joined) == list(range(sum(rows)))
    assert {len(part) for part in read} <= {sum(rows) // world_size, -(-sum(rows) // world_size)}
    if not shuffle:
        assert joined == sorted(joined)
    for shard in shards:
        assert all(w.stop - w.first <= window_rows for w in shard.windows(0, 2 * shard.rows))


def test_order_depends_on_seed_domain_pass_and_rank_and_on_nothing_else() -> None:
    def read(domain: str = "d", seed: int = 0, number: int = 0) -> list[int]:
        return rows_of_pass(Shard(domain, row_groups([20] * 5), ShardSpec(seed=seed), window_rows=40), number)

    assert read() == read()
    orders = [read(), read("e"), read(seed=1), read(seed=-1), read(number=1), read(number=2)]
    assert len({tuple(order) for order in orders}) == len(orders)
    windows = [
        Shard("d", row_groups([40]), ShardSpec(rank, 2), window_rows=10).order(Window(0, first, first + 10))
        for rank in (0, 1)
        for first in (0, 10)
    ]
    assert len({tuple(order) for order in windows if order is not None}) == 4


def test_row_groups_are_shuffled_beyond_the_window() -> None:
    read = rows_of_pass(Shard("d", row_groups([10] * 50), ShardSpec(), window_rows=10), 0)
    assert [row // 10 for row in read[::10]] != sorted(row // 10 for row in read[::10])


def test_a_share_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank 2 is not in \[0, 2\)"):
        ShardSpec(2, 2)


def test_mixing_by_hand() -> None:
    assert mixed_rows({"a": 90, "b": 10}, {"b": 1, "a": 1}, 1) == {"a": 50, "b": 50}
    assert mixed_rows({"a": 4, "b": 3, "c": 3}, {"a": 1, "b": 1, "c": 1}, 1) == {"a": 3, "b": 4, "c": 3}
    assert mixed_rows({"a": 7}, {"a": 0.2}, 7) == {"a": 7}


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(50, 999), st.floats(0.1, 10)), min_size=1))
def test_mixing_keeps_the_epoch_and_the_shares(domains: dict[str, tuple[int, float]]) -> None:
    totals = {name: rows for name, (rows, _) in domains.items()}
    shares = {name: share for name, (_, share) in domains.items()}
    mixed = mixed_rows(totals, shares, 1)
    epoch = sum(totals.values())
    assert sum(mixed.values()) == epoch
    for name, rows in mixed.items():
        assert abs(rows - epoch * shares[name] / sum(shares.values())) <= 1


@pytest.mark.parametrize(
    ("mixing", "world_size", "message"),
    [
        ({"a": 1.0, "x": 1.0}, 1, "unknown domain 'x'; name each of these domains once: a, b"),
        ({"a": 1.0}, 1, "domain 'b' has no share"),
        ({"a": 1.0, "b": 1.0}, 4, "domain 'b' has 3 rows for 4 ranks"),
        ({"a": 1.0, "b": 1e-9}, 1, "share 1e-09 of domain 'b' comes to no row in an epoch of 9 rows"),
    ],
)
def test_mixing_that_does_not_fit(mixing: dict[str, float], world_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixed_rows({"a": 6, "b": 3}, mixing, world_size)
