"""Weighted bags: from parallel lists, pairs and maps to a batch, and what is said of bad ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.support.data_tables import ROWS, row_lists, rows_of, schema_of
from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.rows import Rows
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

LISTS = {"column": "x", "kind": "bag", "rows": ROWS, "weights": "w"}
PAIRS = {**LISTS, "weights": "x"}
OTHER = {"column": "y", "kind": "bag", "rows": ROWS, "table": "x"}
PLAIN = {"column": "z", "kind": "bag", "rows": ROWS}


def rows(schema: Schema, **columns: object) -> Rows:
    count = len(columns["x"])  # type: ignore[arg-type]
    return rows_of(schema, pa.table({**columns, "user": [1] * count, "click": [0] * count}), "a")


def batch_of(schema: Schema, *parts: Rows) -> Batch:
    return Collator(schema, 0)([list(parts), []], LoaderState(0, 1))


def weighted(batch: Batch, column: str = "x") -> list[list[tuple[int, float]]]:
    """The pairs of every row."""
    jagged = batch.weighted_bags[column]
    ids, weights = jagged.to_dense(), jagged.to_dense_weights()
    return [list(zip(i.tolist(), w.tolist(), strict=True)) for i, w in zip(ids, weights, strict=True)]


EXPECTED = [[(1, 0.5), (2, -1.0)], [], [], [(49, 2.0)]]


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.bool_()], ids=str)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, pa.list_view])
def test_two_columns_of_lists(lists: object, number: pa.DataType) -> None:
    whole = number in (pa.int8(), pa.bool_())
    ids = pa.array([[1, 2], None, [], [49, None]], lists(pa.int32()))  # type: ignore[operator]
    given = [[1, 0], None, [], [1, None]] if whole else [[0.5, -1], [], None, [2, 7]]
    weights = pa.array([one and [None if w is None else np.float16(w) for w in one] for one in given])
    column = weights.cast(pa.list_(number)) if not whole else pa.array([[1, 0], None, [], [1, None]])
    found = weighted(batch_of(schema_of(LISTS), rows(schema_of(LISTS), x=ids, w=column)))
    assert found == ([[(1, 1.0), (2, 0.0)], [], [], [(49, 1.0)]] if whole else EXPECTED)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.struct([("id", pa.int64()), ("weight", pa.float32())])),
        pa.large_list(pa.struct([("anything", pa.uint16()), ("w", pa.float64())])),
        pa.map_(pa.int64(), pa.float32()),
    ],
    ids=str,
)
def test_one_column_of_pairs(kind: pa.DataType) -> None:
    pairs = [[(1, 0.5), (2, -1.0)], None, [], [(49, 2.0)]]
    if not pa.types.is_map(kind):
        names = [kind.value_type.field(i).name for i in range(2)]
        pairs = [one and [dict(zip(names, pair, strict=True)) for pair in one] for one in pairs]
        pairs[3].append(None)  # a pair that is null is left out
    schema = schema_of(PAIRS)
    table = pa.array(pairs, kind)
    assert weighted(batch_of(schema, rows(schema, x=table))) == EXPECTED
    assert weighted(batch_of(schema, rows(schema, x=table.slice(2)))) == EXPECTED[2:]
    assert weighted(batch_of(schema, rows(schema, x=pa.nulls(2)))) == [[], []]


def test_what_shares_the_table_has_weight_one_and_others_none() -> None:
    schema = schema_of(LISTS, OTHER, PLAIN)
    ids = pa.array([[3, 4], [5]])
    batch = batch_of(schema, rows(schema, x=ids, w=pa.array([[2.0, 3.0], [4.0]]), y=ids, z=ids))
    assert weighted(batch) == [[(3, 2.0), (4, 3.0)], [(5, 4.0)]]
    assert weighted(batch, "y") == [[(3, 1.0), (4, 1.0)], [(5, 1.0)]]
    assert row_lists(batch.bags) == {"z": [[3, 4], [5]]}
    assert batch.bags.weights_or_none() is None
    padding = batch.padding().weighted_bags
    assert (padding.values().tolist(), padding.weights().tolist(), padding.lengths().tolist()) == ([], [], [0, 0])
    assert batch_of(schema).weighted_bags.weights().tolist() == []


def test_gathered_rows_keep_the_weights_of_their_ids() -> None:
    schema = schema_of(LISTS)
    parts = [
        rows(schema, x=pa.array([[1, 2], []]), w=pa.array([[0.1, 0.2], []])),
        rows(schema, x=pa.array([[3], [4, 5]]), w=pa.array([[0.3], [0.4, 0.5]])),
    ]
    order = np.array([3, 0, 1, 2])
    gathered = Rows.gather(parts, order, Decoder(schema, "a", labels=True, extra=()).id_types)
    found = weighted(batch_of(schema, gathered.slice(0, 2), gathered.slice(3, 4)))
    assert [[id_ for id_, _ in row] for row in found] == [[4, 5], [1, 2], [3]]
    assert [[round(weight, 2) for _, weight in row] for row in found] == [[0.4, 0.5], [0.1, 0.2], [0.3]]


def test_an_id_that_is_dropped_takes_its_weight_with_it() -> None:
    schema = schema_of({**LISTS, "hash": "drop"})
    found = rows(schema, x=pa.array([[1, ROWS, 2], [-1]]), w=pa.array([[0.5, 9.0, -1.0], [9.0]]))
    assert weighted(batch_of(schema, found)) == [[(1, 0.5), (2, -1.0)], []]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"w": [[1.0], [1.0]]}, "row 101, column 'w': 1 is how many weights this row has, for 2 ids of 'x'; write one"),
        ({"w": [[1.0], None]}, "row 101, column 'w': 0 is how many weights this row has, for 2 ids"),
        ({"w": [[1.0], [1.0, None]]}, "row 101, column 'w': None is no weight; weights are finite: 1 has no effect"),
        ({"w": [[1.0], [np.inf, 1.0]]}, "row 101, column 'w': inf is no weight"),
        ({"w": [[1e39], [1.0, 1.0]]}, "row 100, column 'w': 1e+39 is no weight"),
        ({"w": [["a"], ["b", "c"]]}, "column 'w' has type list<element: string>; a bag's weights are lists of numbers"),
        ({"w": [1.0, 2.0]}, "column 'w' has type double; a bag's weights are lists of numbers"),
        ({}, "no column 'w'"),
    ],
)
def test_bad_weights_are_named(columns: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        rows(schema_of(LISTS), x=pa.array([[1], [2, 3]]), **{k: pa.array(v) for k, v in columns.items()})
    assert said in str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1]]),
        pa.array([[{"id": 1, "weight": "a"}]]),
        pa.array([[{"id": "a", "weight": 1.0}]]),
        pa.array([[{"id": 1, "weight": 1.0, "more": 1}]]),
    ],
)
def test_what_holds_no_pairs_is_refused(column: pa.Array) -> None:
    with pytest.raises(UserError, match="a bag that is its own 'weights' holds a list of pairs"):
        rows(schema_of(PAIRS), x=column)
