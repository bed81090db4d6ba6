"""Vocabularies that live: updates worked out by hand, and the mapping against a dictionary."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.data_tables import row_lists, rows_of, schema_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.key_rows import KeyRows, hashes_of, mixed
from torchrec_xd.data.vocabularies import (
    MANIFEST,
    Vocabularies,
    key_rows,
    read_table,
    read_vocabularies,
    write_table,
)
from torchrec_xd.data.vocabulary_update import empty, new_rows, seen_keys, updated
from torchrec_xd.errors import UserError
from torchrec_xd.feature import VocabularySettings
from torchrec_xd.schema import Schema


def slice_of(counts):
    """What a slice holds: key to how often."""
    keys = pa.array(list(counts), pa.large_string() if any(isinstance(key, str) for key in counts) else pa.int64())
    return pa.table({"key": keys, "count": pa.array(list(counts.values()), pa.int64())})


def lived(slices, **settings):
    """The vocabulary after some slices, (now, counts) each: key to (row, count, first seen, last seen); and rows."""
    content, rows = empty(pa.int64()), 0
    for now, counts in slices:
        content, rows = updated(content, slice_of(counts), rows, now, VocabularySettings(**settings), "item")
    return {entry.pop("key"): tuple(entry.values()) for entry in content.to_pylist()}, rows


# ---- updates ---------------------------------------------------------------------------------------------------------


def test_keys_get_rows_by_how_often_they_were_seen_then_by_key():
    found, rows = lived([(5, {30: 1, -7: 4, 10: 1, 20: 4})], block=4)
    assert found == {-7: (1, 4, 5, 5), 20: (2, 4, 5, 5), 10: (3, 1, 5, 5), 30: (4, 1, 5, 5)}
    assert list(found) == [-7, 10, 20, 30]
    assert rows == 8  # 4 keys and row 0 are two blocks of 4


def test_later_keys_come_behind_and_earlier_ones_keep_their_rows():
    found, rows = lived([(0, {"b": 1, "a": 1}), (1, {"a": 9, "d": 1, "c": 2})], block=2)
    assert found == {"a": (1, 10, 0, 1), "b": (2, 1, 0, 0), "c": (3, 2, 1, 1), "d": (4, 1, 1, 1)}
    assert rows == 6


def test_a_key_gets_a_row_once_it_was_seen_often_enough_in_all():
    once, _ = lived([(0, {1: 2, 2: 3})], admit=3)
    assert once == {1: (None, 2, 0, 0), 2: (1, 3, 0, 0)}
    twice, _ = lived([(0, {1: 2, 2: 3}), (1, {1: 1, 3: 1})], admit=3)
    assert twice == {1: (2, 3, 0, 1), 2: (1, 3, 0, 0), 3: (None, 1, 1, 1)}


def test_a_key_that_is_not_seen_for_long_enough_loses_its_row_which_is_used_again():
    """Day 10 and 12 know 1 and 2; on day 13 key 1 was last seen three days ago."""
    days = [(10, {1: 5, 2: 1}), (12, {2: 1, 3: 1}), (13, {4: 7, 5: 1})]
    assert lived(days[:2], expire=3, block=2)[0] == {1: (1, 5, 10, 10), 2: (2, 2, 10, 12), 3: (3, 1, 12, 12)}
    found, rows = lived(days, expire=3, block=2)
    assert found == {2: (2, 2, 10, 12), 3: (3, 1, 12, 12), 4: (1, 7, 13, 13), 5: (4, 1, 13, 13)}
    assert rows == 6
    assert 1 in lived(days, expire=4)[0]
    back, _ = lived([*days, (14, {1: 1})], expire=3)
    assert back[1] == (5, 1, 14, 14)  # as if it had never been there


def test_what_was_not_admitted_is_forgotten_too():
    found, _ = lived([(0, {1: 2}), (5, {2: 1}), (6, {1: 2})], admit=3, expire=5)
    assert found == {1: (None, 2, 6, 6), 2: (None, 1, 5, 5)}


def test_a_table_grows_up_to_its_capacity_and_then_says_what_to_raise():
    assert lived([(0, dict.fromkeys(range(5), 1))], block=4, capacity=6)[1] == 6
    with pytest.raises(
        UserError,
        match=r"table 'item': 6 keys and row 0 need 7 rows, and vocabulary.capacity is 6: raise it, or raise admit "
        r"\(1\), or set expire, so that fewer keys have a row",
    ):
        lived([(0, dict.fromkeys(range(6), 1))], block=4, capacity=6)
    with pytest.raises(UserError, match="or lower expire"):
        lived([(0, dict.fromkeys(range(6), 1))], capacity=6, expire=2)
    assert lived([(0, {1: 1, 2: 1}), (1, {3: 1, 4: 1})], capacity=3, expire=1)[0] == {3: (1, 1, 1, 1), 4: (2, 1, 1, 1)}


def test_an_empty_slice_changes_nothing():
    content, rows = updated(empty(pa.int64()), slice_of({"a": 1}), 0, 0, VocabularySettings(block=4), "item")
    after, more = updated(content, slice_of({}), rows, 1, VocabularySettings(block=4), "item")
    assert after.equals(content)
    assert more == rows == 4


def test_integers_do_not_become_texts():
    with pytest.raises(UserError, match="keys were integers so far and are strings now"):
        lived([(0, {1: 1}), (1, {"1": 1})])


KEYS = st.dictionaries(st.integers(0, 12), st.integers(1, 4), max_size=8)


@given(st.lists(KEYS, min_size=1, max_size=6), st.integers(1, 3), st.none() | st.integers(1, 3), st.integers(1, 5))
def test_no_two_keys_ever_share_a_row_and_rows_stay(slices, admit, expire, block):
    content, rows = empty(pa.int64()), 0
    for now, counts in enumerate(slices):
        before = {e["key"]: e["row"] for e in content.to_pylist()}
        old = content
        settings = VocabularySettings(admit=admit, expire=expire, block=block)
        content, more = updated(content, slice_of(counts), rows, now, settings, "item")
        after = {e["key"]: e["row"] for e in content.to_pylist()}
        held = [row for row in after.values() if row is not None]
        assert len(set(held)) == len(held)
        assert all(0 < row < more for row in held)
        assert more >= rows
        assert more % block == 0
        assert all(after[key] == row for key, row in before.items() if key in after and row is not None)
        rows = more
        changed, keys = new_rows(old if now else None, content)
        expected = {row: key for key, row in after.items() if row and before.get(key) != row}
        assert dict(zip(changed.tolist(), keys.to_pylist(), strict=True)) == expected
        assert list(changed) == sorted(changed)


# ---- the mapping -----------------------------------------------------------------------------------------------------

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 9)


@given(st.lists(INTEGERS, unique=True), st.lists(INTEGERS))
def test_integers_map_as_in_a_dictionary(keys, queries):
    rows = {key: i + 1 for i, key in enumerate(keys)}
    own = KeyRows.of(hashes_of(pa.array(keys, pa.int64())), np.arange(1, len(keys) + 1))
    asked = keys + queries
    assert own.rows_of(pa.array(asked, pa.int64())).tolist() == [rows.get(key, 0) for key in asked]


@given(st.lists(st.text(max_size=40), unique=True), st.lists(st.text(max_size=40)))
def test_texts_map_as_in_a_dictionary(keys, queries):
    rows = {key: i + 1 for i, key in enumerate(keys)}
    own = KeyRows.of(hashes_of(pa.array(keys, pa.large_string())), np.arange(1, len(keys) + 1))
    asked = keys + queries
    assert own.rows_of(pa.array(asked, pa.string())).tolist() == [rows.get(key, 0) for key in asked]
    assert own.rows_of(pa.array(asked, pa.string()).dictionary_encode()).tolist() == [rows.get(k, 0) for k in asked]


def test_many_keys_and_near_ones():
    keys = np.concatenate([np.arange(-50_000, 50_000), np.arange(1, 20_000) << 40])
    own = KeyRows.of(mixed(keys.view(np.uint64)), np.arange(1, len(keys) + 1))
    assert (own.rows_of(pa.array(keys)) == np.arange(1, len(keys) + 1)).all()
    assert not own.rows_of(pa.array(keys[:50_000] - 50_000)).any()
    assert np.diff(own.begin_S).max() < 12  # hashes of a slot, each of which may have to be compared
    assert len(np.unique(mixed(keys.view(np.uint64)))) == len(keys)


# ---- columns ---------------------------------------------------------------------------------------------------------


def vocabulary_at(folder, table, content, rows=64):
    folder.mkdir(exist_ok=True)
    file = write_table(folder, table, content, rows)
    found = Vocabularies(now=0, dated=False, tables={table: file})
    (folder / MANIFEST).write_text(found.model_dump_json())
    return folder


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("id", pa.array(["b", None, "new", "a"]), [[2], [], [0], [1]]),
        ("id", pa.array(["b", None, "new", "a"], pa.string_view()), [[2], [], [0], [1]]),
        ("bag", pa.array([["a", None, "b"], None, [], ["new"]]), [[1, 2], [], [], [0]]),
        ("sequence", pa.array([["a", "b", "new"], None, ["b"], ["a", None]]), [[2, 0], [], [2], [1]]),
    ],
)
def test_the_decoder_gives_raw_keys_their_rows(tmp_path, kind, values, expected):
    content, _ = updated(empty(pa.int64()), slice_of({"a": 2, "b": 1}), 0, 0, VocabularySettings(), "x")
    feature = {"column": "x", "kind": kind, "vocabulary": {}, **({"length": 2} if kind == "sequence" else {})}
    schema = schema_of(feature).with_vocabularies(vocabulary_at(tmp_path / "v", "t_x", content), {"t_x": 64})
    table = pa.table({"x": values, "user": [1] * len(values), "click": [0] * len(values)})
    batch = Collator(schema, 0)([[rows_of(schema, table, "a")], []], LoaderState(0, 1))
    assert row_lists(batch.sequences if kind == "sequence" else batch.bags)["x"] == expected


def test_keys_of_all_columns_and_domains_of_a_table_are_counted(tmp_path):
    names = {"first": pa.int32(), "second": pa.dictionary(pa.int8(), pa.int64())}
    for name, kind in names.items():
        (tmp_path / name).mkdir()
        keys = pa.array([1, 2, None, 2], pa.int64())
        keys = keys.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else keys.cast(kind)
        lists = pa.array([[2, 3], None, [], [None, 3]])
        plain = pa.array([7, 7, 8, 9])
        table = pa.table({"item": keys, "hist": lists, "plain": plain, "user": [1] * 4, "y": [0, 1, 0, 1]})
        pq.write_table(table, tmp_path / name / "0.parquet", row_group_size=3)
    schema = Schema.model_validate(
        {
            "name": "two",
            "user": "user",
            "root": str(tmp_path),
            "domains": {name: {"role": "target", "train": name} for name in names},
            "tasks": [{"label": "y", "domain": name} for name in names],
            "features": [
                {"column": "item", "kind": "id", "group": "shared", "vocabulary": {}},
                {
                    "column": "hist",
                    "kind": "sequence",
                    "group": "sequence",
                    "table": "item",
                    "length": 3,
                    "vocabulary": {},
                },
                {"column": "plain", "kind": "id", "group": "shared", "rows": 10},
            ],
        }
    )
    found = seen_keys(schema, ["t_item"])
    assert {e["key"]: e["count"] for e in found["t_item"].to_pylist()} == {1: 2, 2: 6, 3: 4}


def test_a_changed_file_is_refused(tmp_path):
    content, _ = updated(empty(pa.int64()), slice_of({1: 1}), 0, 0, VocabularySettings(), "x")
    folder = vocabulary_at(tmp_path / "v", "t_x", content)
    assert key_rows(folder, "t_x").rows_of(pa.array([1, 2])).tolist() == [1, 0]
    pq.write_table(content, folder / "t_x.parquet", compression="snappy")
    with pytest.raises(UserError, match=r"t_x.parquet is missing, or was changed since it was written"):
        read_table(folder, "t_x")
    with pytest.raises(UserError, match=r"has no vocabulary of table 'y', only t_x"):
        read_table(folder, "t_y")
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="holds no vocabularies"):
        read_vocabularies(folder)


def test_settings_that_exclude_each_other():
    for more, said in (({"hash": "mod"}, "and 'hash: mod' does too"), ({"kind": "dense"}, "no hash, nor a vocabulary")):
        with pytest.raises(ValueError, match=said):
            schema_of({"column": "x", "kind": "id", "vocabulary": {}, **more})
    with pytest.raises(ValueError, match="'vocabularies' is never written"):
        schema_of({"column": "x", "kind": "id", "vocabulary": {}}, vocabularies="somewhere")
    with pytest.raises(UserError, match="a run makes the vocabularies of its tables \\(x\\)"):
        rows_of(schema_of({"column": "x", "kind": "id", "vocabulary": {}}), pa.table({"x": [1]}), "a")
