"""Loaders end to end, from files written here to batches: cover, order, resume, mixing, threads, errors."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.numbered import Layout, content, users, write
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

layouts = st.lists(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=3).filter(
        lambda files: sum(map(sum, files))
    ),
    min_size=1,
    max_size=3,
)


# ---- cover, order, resume --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.integers(1, 4), st.integers(1, 12), st.integers(1, 20), st.booleans())
def test_every_row_once_an_epoch_in_equal_steps_over_all_ranks(
    root: Path, domains: list[Layout], world_size: int, batch_size: int, window: int, shuffle: bool
) -> None:
    schema, totals = write(root, domains)
    cut = LoaderSettings(batch_size=batch_size, shuffle_rows=window)
    loaders = [Loader(schema, cut, "train", ShardSpec(rank, world_size, 3, shuffle)) for rank in range(world_size)]
    read = [list(loader.batches(epochs=2)) for loader in loaders]
    steps = -(-sum(totals) // (world_size * batch_size))
    assert {(loader.steps, loader.rows) for loader in loaders} == {(steps, sum(totals))}
    assert [[b.position for b in batches] for batches in read] == [
        [LoaderState(epoch, step) for epoch in range(2) for step in range(1, steps + 1)]
    ] * world_size
    for epoch, (domain, total) in itertools.product(range(2), enumerate(totals)):
        ranks = [batches[epoch * steps : (epoch + 1) * steps] for batches in read]
        seen = [user for batches in ranks for batch in batches for user in users(batch, domain)]
        assert sorted(seen) == list(range(total))
        if not shuffle:
            assert seen == sorted(seen)
        for batches in ranks:
            share = sum(len(users(batch, domain)) for batch in batches) / steps
            assert all(abs(len(users(batch, domain)) - share) < 1 for batch in batches)
    for batch in itertools.chain(*read):
        assert len(batch) <= batch_size + len(domains) - 1
        digits = [[int(digit) for digit in str(user)] for user in batch.user_B.tolist()]
        assert batch.sequences.values().tolist() == [digit for row in digits for digit in row[-4:]]
        assert batch.bags.values().tolist() == [row[-1] for row in digits]


@settings(max_examples=25, deadline=None)
@given(layouts, st.integers(1, 3), st.integers(1, 6), st.integers(1, 12), st.booleans(), st.data())
def test_resuming_anywhere_yields_what_was_left(
    root: Path, domains: list[Layout], world_size: int, batch_size: int, window: int, mixed: bool, data: st.DataObject
) -> None:
    schema, totals = write(root, domains)
    mixed = mixed and min(totals) >= world_size and len(totals) == 2
    mixing = {"d0": 1.0, "d1": 2.0} if mixed and sum(totals) > 5 else None
    cut = LoaderSettings(batch_size=batch_size, shuffle_rows=window, mixing=mixing)
    share = ShardSpec(data.draw(st.integers(0, world_size - 1)), world_size)
    whole = [content(batch) for batch in Loader(schema, cut, "train", share).batches(epochs=3)]
    done = data.draw(st.integers(0, len(whole)))
    loader = Loader(schema, cut, "train", share)
    start = whole[done - 1]["position"] if done else LoaderState(0, 0)
    assert [content(batch) for batch in loader.batches(start, epochs=3)] == whole[done:]


def test_a_resumed_reader_does_not_read_what_is_past(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[100] * 10]])
    loader = Loader(schema, LoaderSettings(batch_size=10, shuffle_rows=100), "train", ShardSpec(shuffle=False))
    assert len(list(loader.batches(LoaderState(0, 85)))) == 15
    assert read == [8, 9]


def test_epochs_seeds_and_windows_change_the_order_and_nothing_else_does(root: Path) -> None:
    schema, _ = write(root, [[[30, 30], [40]]])

    def order(seed: int = 0, window: int = 50, batch_size: int = 10, epochs: int = 2) -> list[int]:
        loader = Loader(
            schema, LoaderSettings(batch_size=batch_size, shuffle_rows=window), "train", ShardSpec(seed=seed)
        )
        return [user for batch in loader.batches(epochs=epochs) for user in users(batch, 0)]

    assert order() == order() == order(batch_size=7)
    first, second = order()[:100], order()[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert len({tuple(o) for o in (first, second, order(seed=1)[:100], order(window=9)[:100], range(100))}) == 5


def test_a_window_larger_than_the_data_shuffles_across_files(root: Path) -> None:
    schema, _ = write(root, [[[50], [50], [50], [50]]])
    loader = Loader(schema, LoaderSettings(batch_size=50), "train")
    for batch in loader.batches():
        assert len({user // 50 for user in users(batch, 0)}) == 4


def test_without_shuffling_rows_come_in_file_order_and_batches_group_domains(root: Path) -> None:
    schema, _ = write(root, [[[3], [2, 1]], [[3]]])
    loader = Loader(schema, LoaderSettings(batch_size=3), "test", ShardSpec(shuffle=False), labels=False)
    read = [(batch.offsets, users(batch, 0), users(batch, 1)) for batch in loader.batches()]
    assert read == [
        ((0, 2, 3), [0, 1], [0]),
        ((0, 2, 3), [2, 3], [1]),
        ((0, 2, 3), [4, 5], [2]),
    ]


def test_small_domains_give_their_rows_in_different_steps(root: Path) -> None:
    schema, _ = write(root, [[[2]], [[2]]])
    loader = Loader(schema, LoaderSettings(batch_size=1), "train", ShardSpec(shuffle=False))
    assert [batch.offsets for batch in loader.batches()] == [(0, 0, 1), (0, 1, 1), (0, 0, 1), (0, 1, 1)]


def test_more_ranks_than_rows_give_empty_batches(root: Path) -> None:
    schema, _ = write(root, [[[2]]])
    read = [list(Loader(schema, LoaderSettings(), "train", ShardSpec(rank, 5)).batches()) for rank in range(5)]
    assert [[len(batch) for batch in batches] for batches in read] == [[0], [0], [1], [0], [1]]
    assert all(batches[0].bags.stride() == len(batches[0]) for batches in read)


# ---- mixing and splits -----------------------------------------------------------------------------------------------


def test_mixing_by_hand(root: Path) -> None:
    schema, _ = write(root, [[[90]], [[10]]])
    mixing = LoaderSettings(batch_size=10, shuffle_rows=4, mixing={"d0": 1, "d1": 1})
    loaders = [Loader(schema, mixing, "train", ShardSpec(rank, 2)) for rank in range(2)]
    assert {(loader.steps, loader.rows) for loader in loaders} == {(5, 100)}
    read = [list(loader.batches(epochs=9)) for loader in loaders]
    assert all(batch.offsets == (0, 5, 10) for batches in read for batch in batches)
    # 9 epochs of 50 rows are 5 whole passes over d0 and 45 over d1: every row equally often.
    for domain, times in ((0, 5), (1, 45)):
        seen = Counter(user for batches in read for batch in batches for user in users(batch, domain))
        assert set(seen.values()) == {times}


def test_mixing_in_the_proportions_of_the_data_is_no_mixing(root: Path) -> None:
    schema, _ = write(root, [[[30]], [[10]]])
    plain, mixed = (
        Loader(schema, LoaderSettings(batch_size=7, mixing=mixing), "train")
        for mixing in (None, {"d0": 3.0, "d1": 1.0})
    )
    assert [content(batch) for batch in mixed.batches(epochs=2)] == [
        content(batch) for batch in plain.batches(epochs=2)
    ]


def test_evaluation_is_never_mixed(root: Path) -> None:
    schema, _ = write(root, [[[9]], [[3]]])
    loader = Loader(schema, LoaderSettings(mixing={"d0": 1, "d1": 1}), "test")
    assert [batch.offsets for batch in loader.batches()] == [(0, 9, 12)]


@pytest.mark.parametrize("settings", [{"mixing": {"d0": 0}}, {"mixing": {"d0": float("inf")}}, {"batch_size": 0}])
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoaderSettings(**settings)


def with_domains(schema: Schema, **changes: dict[str, Any]) -> Schema:
    domains = {name: domain.model_copy(update=changes.get(name, {})) for name, domain in schema.domains.items()}
    return schema.model_copy(update={"domains": domains})


def test_a_domain_without_the_split_gives_no_rows(root: Path) -> None:
    schema, _ = write(root, [[[3]], [[4]]])
    loader = Loader(with_domains(schema, d0={"test": None}), LoaderSettings(), "test")
    assert [batch.offsets for batch in loader.batches()] == [(0, 0, 4)]
    with pytest.raises(UserError, match=r"no domain of schema 'numbered' has a 'valid' split.*d0, d1"):
        Loader(schema, LoaderSettings(), "valid")


def test_a_domain_without_rows(root: Path) -> None:
    schema, _ = write(root, [[[3]], [[], [0]]])
    with pytest.raises(UserError, match="domain 'd1': the train files hold no rows"):
        Loader(schema, LoaderSettings(), "train")
    assert [len(batch) for batch in Loader(schema, LoaderSettings(), "test").batches()] == [3]
    loader = Loader(schema.only(("d1",)), LoaderSettings(), "test")
    assert (loader.steps, loader.rows, list(loader.batches(epochs=3))) == (0, 0, [])


def test_a_position_beyond_the_epoch(root: Path) -> None:
    schema, _ = write(root, [[[30]]])
    loader = Loader(schema, LoaderSettings(batch_size=10), "train")
    assert [batch.position for batch in loader.batches(LoaderState(0, 3), epochs=2)] == [
        LoaderState(1, s) for s in (1, 2, 3)
    ]
    assert list(loader.batches(LoaderState(2, 0), epochs=2)) == []
    with pytest.raises(UserError, match="step 4 lies beyond the 3 steps of an epoch"):
        loader.batches(LoaderState(0, 4))


def test_stamps_of_the_files_by_domain(root: Path) -> None:
    schema, _ = write(root, [[[3], [2, 2]], [[4]]])
    stamps = Loader(with_domains(schema, d1={"test": None}), LoaderSettings(), "test").stamps()
    assert {name: [(stamp.name, stamp.rows) for stamp in own] for name, own in stamps.items()} == {
        "d0": [("d0/0.parquet", 3), ("d0/1.parquet", 4)],
        "d1": [],
    }


# ---- files that are not as they should be ----------------------------------------------------------------------------


def test_labels_are_only_asked_for_when_they_are_read(root: Path) -> None:
    schema, _ = write(root, [[[3]]])
    table = pq.read_table(root / "d0")
    pq.write_table(table.drop_columns("y"), root / "d0" / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet \(domain 'd0'\): no column 'y'"):
        Loader(schema, LoaderSettings(), "test")
    (batch,) = Loader(schema, LoaderSettings(), "test", labels=False).batches()
    assert bool(batch.label_BT.isnan().all())


def test_extra_columns_that_some_files_lack(root: Path) -> None:
    schema, _ = write(root, [[[2], [2]]])
    table = pq.read_table(root / "d0" / "1.parquet")
    pq.write_table(table.append_column("recent", pa.array([5, None])), root / "d0" / "1.parquet")
    loader = Loader(schema, LoaderSettings(), "test", ShardSpec(shuffle=False), extra=("item", "recent"))
    (batch,) = loader.batches()
    assert batch.extra_BK.tolist() == [[0, -1], [1, -1], [2, 5], [3, -1]]


def test_types_may_differ_from_file_to_file(root: Path) -> None:
    schema, _ = write(root, [[[2], [2]]])
    table = pq.read_table(root / "d0" / "1.parquet")
    large = pa.schema(
        [("user", pa.uint16()), ("item", pa.int64()), ("history", pa.large_list(pa.int8())), ("y", pa.bool_())]
    )
    pq.write_table(table.cast(large), root / "d0" / "1.parquet")
    (batch,) = Loader(schema, LoaderSettings(), "test", ShardSpec(shuffle=False)).batches()
    assert content(batch)["user"] == content(batch)["bags"][0] == content(batch)["sequences"][0] == [0, 1, 2, 3]


def test_a_column_to_slice_by_that_no_file_has(root: Path) -> None:
    schema, _ = write(root, [[[2]], [[2]]])
    path = root / "d1" / "0.parquet"
    pq.write_table(pq.read_table(path).append_column("recent", pa.array([5, None])), path)
    assert Loader(schema, LoaderSettings(), "test", extra=("recent",)).rows == 4
    else_by = "'metrics.slices' or a diagnostic"
    for slices, activity, by in ((("user", "recnt"), None, else_by), (("recnt",), "recnt", "the schema's 'activity'")):
        with pytest.raises(UserError) as error:
            Loader(schema.model_copy(update={"activity": activity}), LoaderSettings(), "test", extra=slices)
        assert str(error.value) == (
            f"no file of the test split has the column 'recnt', which {by} names; did you "
            "mean 'recent'?; columns there: history, item, recent, user, y"
        )


def change(path: Path, row: int, column: str, value: object, **options: Any) -> None:
    """Write a file again, row groups of 5, with another value."""
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = value
    kind = table.schema.field(column).type
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, kind)), path, row_group_size=5, **options)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("item", 10, r"row 7, column 'item': 10 lies outside \[0, 10\)"),
        ("item", -1, r"row 7, column 'item': -1 lies outside \[0, 10\)"),
        ("history", [3, 12], r"row 7, column 'history': 12 lies outside \[0, 10\)"),
        ("y", 2, "row 7, column 'y': 2.* is no label"),
        ("y", None, "row 7, column 'y': None is no label"),
        ("user", None, "row 7, column 'user': None is no user"),
    ],
)
def test_statistics_lead_to_bad_values_before_anything_is_read(
    root: Path, read: list[int], column: str, value: object, said: str
) -> None:
    schema, _ = write(root, [[[20], [5, 5]]])
    change(root / "d0" / "1.parquet", 7, column, value)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=rf"d0/1\.parquet: {said}"):
            Loader(schema, LoaderSettings(), split)
    assert read == [1, 1]


def test_ids_that_a_sequence_does_not_keep_may_lie_anywhere(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[20], [5, 5]]])
    change(root / "d0" / "1.parquet", 7, "history", [99, 1, 2, 3, 4])
    loader = Loader(schema, LoaderSettings(), "test")
    assert read == [1]
    assert loader.rows == 30


def test_hashed_ids_have_no_bounds(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[10]]])
    change(root / "d0" / "0.parquet", 7, "item", -5)
    for hash in ("mod", "xxhash"):
        features = (schema.features[0].model_copy(update={"hash": hash}), *schema.features[1:])
        assert Loader(schema.model_copy(update={"features": features}), LoaderSettings(), "test").rows == 10
    assert read == []


def hashed(schema: Schema, table: str | None = None) -> Schema:
    """The schema with hashed items and histories, both in `table` where one is named."""
    update = {"hash": "xxhash", **({"table": table} if table else {})}
    return schema.model_copy(update={"features": tuple(f.model_copy(update=update) for f in schema.features)})


def as_strings(path: Path, column: str, kind: pa.DataType) -> None:
    table = pq.read_table(path)
    lists = pa.types.is_list(table.schema.field(column).type)
    values = [[str(i) for i in v] if lists else str(v) for v in table.column(column).to_pylist()]
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, pa.list_(kind) if lists else kind)), path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())], ids=str)
@pytest.mark.parametrize(
    ("file", "column", "table"),
    [
        pytest.param("d0/1.parquet", "item", None, id="in two files"),
        pytest.param("d1/0.parquet", "item", None, id="in two domains"),
        pytest.param("d0/0.parquet", "history", "thing", id="in two columns of one table"),
    ],
)
def test_a_table_whose_ids_are_integers_here_and_strings_there(
    root: Path, kind: pa.DataType, file: str, column: str, table: str | None
) -> None:
    schema, _ = write(root, [[[3], [2]], [[4]]])
    assert Loader(hashed(schema, table), LoaderSettings(), "test").rows == 9
    as_strings(root / file, column, kind)
    with pytest.raises(UserError) as error:
        Loader(hashed(schema, table), LoaderSettings(), "test")
    assert str(error.value) == (
        f"table '{table or 'item'}': ids are integers in {root}/d0/0.parquet (column 'item') and strings in "
        f"{root}/{file} (column '{column}'); hashed, the same id would get different rows: write both with one type, "
        "or give them tables of their own"
    )


def test_integers_of_any_width_and_columns_of_null_are_one_kind(root: Path) -> None:
    schema, _ = write(root, [[[3], [2], [2]]])
    for i, kind in ((1, pa.uint64()), (2, pa.null())):
        table = pq.read_table(root / "d0" / f"{i}.parquet")
        column = pa.nulls(2) if kind == pa.null() else table["item"].cast(kind).dictionary_encode()
        pq.write_table(table.set_column(1, "item", column), root / "d0" / f"{i}.parquet")
    loader = Loader(hashed(schema), LoaderSettings(), "test")
    assert {name: (found.kind, found.column) for name, found in loader.id_kinds.items()} == {
        "": ("integers", "user"),
        "t_item": ("integers", "item"),
        "t_digit": ("integers", "history"),
    }


def spoil(root: Path) -> Schema:
    """A second file, without statistics, whose row 7 (of row group 1) has an item outside the table."""
    schema, _ = write(root, [[[20], [5, 5]]])
    change(root / "d0" / "1.parquet", 7, "item", 10, write_statistics=False)
    return schema


def test_a_bad_value_is_raised_in_the_consumer_once_it_is_reached(root: Path) -> None:
    loader = Loader(spoil(root), LoaderSettings(batch_size=5, shuffle_rows=5), "train", ShardSpec(shuffle=False))
    batches = loader.batches()
    assert [users(next(batches), 0)[0] for _ in range(5)] == [0, 5, 10, 15, 20]
    with pytest.raises(UserError, match=r"d0/1\.parquet: row 7, column 'item': 10 lies outside \[0, 10\)"):
        next(batches)


@pytest.mark.parametrize("window", [2, 4, 23, 100])
def test_the_row_in_an_error_is_counted_in_the_file(root: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Wherever a window begins, and in whatever chunks Arrow hands out a row group."""
    read_row_group = pq.ParquetFile.read_row_group

    def chunked(self: pq.ParquetFile, index: int, **options: Any) -> pa.Table:
        table = read_row_group(self, index, **options)
        return pa.concat_tables([table.slice(0, 1), table.slice(1)])

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", chunked)
    for shuffle in (True, False):
        loader = Loader(spoil(root), LoaderSettings(shuffle_rows=window), "train", ShardSpec(shuffle=shuffle))
        with pytest.raises(UserError, match=r"d0/1\.parquet: row 7, column 'item': 10 lies outside"):
            list(loader.batches())
