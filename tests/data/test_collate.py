"""Rows -> batch, against a slow reference in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.data_tables import ROWS, row_lists, rows_of, schema_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.rows import IdType, Jagged, Rows, _gather_jagged

FEATURES = (
    {"column": "store", "kind": "id", "rows": ROWS},
    {"column": "tags", "kind": "bag", "rows": ROWS, "hash": "mod"},
    {"column": "history", "kind": "sequence", "rows": ROWS, "length": 3, "table": "item"},
    {"column": "price", "kind": "dense"},
    {"column": "item", "kind": "id", "rows": ROWS, "table": "item"},
    {"column": "campaign", "kind": "id", "rows": ROWS, "group": "specific", "domains": ["b"]},
    {"column": "age", "kind": "dense", "domains": ["a"]},
)
SCHEMA = schema_of(*FEATURES, weight="weight")
maybe_id = st.none() | st.integers(0, ROWS - 1)
maybe_number = st.none() | st.floats(-9, 9, width=32)
record = st.fixed_dictionaries(
    {
        "store": maybe_id,
        "tags": st.none() | st.lists(st.none() | st.integers(-100, 100), max_size=5),
        "history": st.none() | st.lists(maybe_id, max_size=6),
        "price": maybe_number,
        "item": maybe_id,
        "campaign": maybe_id,
        "age": maybe_number,
        "user": st.integers(-(2**63), 2**63 - 1),
        "weight": st.floats(0.125, 8, width=32),
        "click": st.integers(0, 1),
        "buy": st.booleans(),
        "recent": st.none() | st.integers(0, 99),
    }
)
TYPES = {
    **dict.fromkeys(("store", "item", "campaign", "user", "recent"), pa.int64()),
    **dict.fromkeys(("tags", "history"), pa.list_(pa.int64())),
    **dict.fromkeys(("price", "age", "weight"), pa.float64()),
    "click": pa.int8(),
    "buy": pa.bool_(),
}
OWN = {"a": set(TYPES) - {"campaign", "buy", "recent"}, "b": set(TYPES) - {"age", "click"}}


def reference(records: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """What the batch must say, one row at a time."""

    def ids(column: str, domain: str, value: Any) -> list[int]:
        if column not in OWN[domain] or value is None:
            return []
        kept = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
        if column == "tags":
            return [one % ROWS for one in kept]
        return kept[-3:] if column == "history" else kept

    def number(column: str, domain: str, row: dict[str, Any], absent: float) -> float:
        return float(row[column]) if column in OWN[domain] and row[column] is not None else absent

    return {
        "bags": {c: [ids(c, d, row[c]) for d, row in records] for c in ("store", "tags", "campaign")},
        "sequences": {c: [ids(c, d, row[c]) for d, row in records] for c in ("history", "item")},
        "dense": [[number("price", d, row, 0.0), number("age", d, row, 0.0)] for d, row in records],
        "label": [[number("click", d, row, -1), number("buy", d, row, -1)] for d, row in records],
        "weight": [row["weight"] for _, row in records],
        "user": [row["user"] for _, row in records],
        "extra": [[number("recent", d, row, -1)] for d, row in records],
    }


@given(st.lists(record, max_size=6), st.lists(st.lists(record, max_size=6), max_size=3))
def test_a_batch_of_two_domains_equals_the_slow_reference(
    of_a: list[dict[str, Any]], of_b: list[list[dict[str, Any]]]
) -> None:
    def rows(domain: str, records: list[dict[str, Any]]) -> Rows:
        columns = {name: pa.array([row[name] for row in records], TYPES[name]) for name in sorted(OWN[domain])}
        return rows_of(SCHEMA, pa.table(columns), domain, extra=("recent",))

    parts = [[rows("a", of_a)], [rows("b", records) for records in of_b]]
    batch = Collator(SCHEMA, 1)(parts, LoaderState(2, 3))
    expected = reference([("a", row) for row in of_a] + [("b", row) for records in of_b for row in records])
    assert batch.position == LoaderState(2, 3)
    assert batch.offsets == (0, len(of_a), len(of_a) + sum(map(len, of_b)))
    assert row_lists(batch.bags) == expected["bags"]
    assert row_lists(batch.sequences) == expected["sequences"]
    assert batch.dense_BN.tolist() == expected["dense"]
    assert batch.label_BT.nan_to_num(-1).tolist() == expected["label"]
    assert batch.weight_B.tolist() == expected["weight"]
    assert batch.user_B.tolist() == expected["user"]
    assert batch.extra_BK.tolist() == expected["extra"]
    for jagged in (batch.bags, batch.sequences):
        told = jagged.length_per_key()
        jagged._length_per_key = None
        assert (jagged.stride(), jagged.length_per_key()) == (len(batch), told)
    assert [part.dtype for part in (batch.bags.values(), batch.bags.lengths(), batch.dense_BN)] == [
        torch.int64,
        torch.int32,
        torch.float32,
    ]


ID_TYPES = Decoder(SCHEMA, "b", labels=True, extra=()).id_types


@given(st.lists(record, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_gathering_and_slicing_rows_equals_picking_them(records: list[dict[str, Any]], random: Any) -> None:
    def rows(chosen: list[dict[str, Any]]) -> Rows:
        columns = {name: pa.array([row[name] for row in chosen], TYPES[name]) for name in sorted(OWN["b"])}
        return rows_of(SCHEMA, pa.table(columns), "b", extra=("recent",))

    cut = random.randint(0, len(records))
    order = random.sample(range(len(records)), len(records))
    start, stop = sorted((random.randint(0, len(records)), random.randint(0, len(records))))
    gathered = (
        Rows.gather([rows(records[:cut]), rows(records[cut:])], np.array(order), ID_TYPES)
        .slice(start, len(records))
        .slice(0, stop - start)
    )
    picked = rows([records[i] for i in order[start:stop]])
    collate = Collator(SCHEMA, 1)
    one, other = (collate([[], [part]], LoaderState(0, 0)) for part in (gathered, picked))
    assert row_lists(one.bags) == row_lists(other.bags)
    assert row_lists(one.sequences) == row_lists(other.sequences)
    for name in ("dense_BN", "weight_B", "user_B", "extra_BK"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.label_BT.nan_to_num(-1), other.label_BT.nan_to_num(-1))


def test_a_batch_without_rows() -> None:
    batch = Collator(SCHEMA, 2)([[], []], LoaderState(0, 1)).to(torch.device("cpu"))
    assert (len(batch), batch.offsets) == (0, (0, 0, 0))
    assert [t.shape for t in (batch.dense_BN, batch.label_BT, batch.extra_BK)] == [(0, 2), (0, 2), (0, 2)]
    assert [t.shape for t in (batch.weight_B, batch.user_B)] == [(0,), (0,)]
    for jagged, count in ((batch.bags, 3), (batch.sequences, 2)):
        assert (len(jagged.keys()), jagged.stride(), jagged.length_per_key()) == (count, 0, [0] * count)
        assert (jagged.values().shape, jagged.lengths().shape, jagged.offsets().tolist()) == ((0,), (0,), [0])


def test_a_schema_without_bags_or_without_sequences() -> None:
    schema = schema_of({"column": "price", "kind": "dense"})
    table = pa.table({"price": [1.5, 2.5], "user": [1, 2], "click": [0, 1]})
    batch = Collator(schema, 0)([[rows_of(schema, table, "a")], []], LoaderState(0, 1)).to(torch.device("cpu"))
    for jagged in (batch.bags, batch.sequences):
        assert (jagged.keys(), jagged.stride(), jagged.values().numel()) == ([], 2, 0)


@pytest.mark.parametrize("rows", [2**31, 2**31 + 1])
def test_the_largest_id_survives_shuffling(rows: int) -> None:
    schema = schema_of({"column": "item", "kind": "id", "rows": rows})
    table = pa.table({"item": [rows - 1, 0], "user": [1, 2], "click": [0, 1]})
    gathered = Rows.gather(
        [rows_of(schema, table, "a")], np.array([1, 0]), Decoder(schema, "a", labels=True, extra=()).id_types
    )
    assert gathered.ids[0].values.tolist() == [0, rows - 1]
    assert gathered.ids[0].values.dtype == (np.int32 if rows == 2**31 else np.int64)


def test_unsigned_ids_are_shuffled() -> None:
    schema = schema_of({"column": "item", "kind": "id", "rows": ROWS})
    table = pa.table({"item": pa.array([ROWS - 1, 0], pa.uint64()), "user": [1, 2], "click": [0, 1]})
    gathered = Rows.gather([rows_of(schema, table, "a")], np.array([1, 0]), ID_TYPES[:1])
    assert gathered.ids[0].values.tolist() == [0, ROWS - 1]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_gathered_spans_are_those_that_an_index_for_every_value_finds(kind: IdType) -> None:
    random = np.random.default_rng(0)
    lengths = [random.integers(0, 5, rows) for rows in (40, 1, 25)]
    parts = [
        Jagged.of_lengths(random.integers(0, 2**31 - 1, n.sum()), n, random.random(n.sum(), dtype=np.float32))
        for n in lengths
    ]
    parts[1] = Jagged(np.array([7]), None)  # one id in every row, of weight 1
    order = random.integers(0, 66, 90)  # some rows twice, some never
    found = _gather_jagged(parts, order, kind)
    alone = [part.slice(i, i + 1) for part in parts for i in range(len(part.lengths))]
    rows = [(row.values, row.all_weights()) for row in alone]
    assert found.values.dtype == kind
    assert found.values.tolist() == np.concatenate([rows[i][0] for i in order]).tolist()
    assert found.all_weights().tolist() == np.concatenate([rows[i][1] for i in order]).tolist()
    assert found.lengths.tolist() == [len(rows[i][0]) for i in order]


def test_gathered_rows_without_an_id_where_others_have_some() -> None:
    part = Jagged.of_lengths(np.array([4, 5]), np.array([0, 2, 0]))
    found = _gather_jagged([part], np.array([0, 2]), np.int32)
    assert (found.values.tolist(), found.lengths.tolist()) == ([], [0, 0])
