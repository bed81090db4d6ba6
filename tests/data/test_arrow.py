"""Arrow columns -> rows: every kind of awkward Parquet, and what is said about values and columns that break a rule."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.data_tables import ROWS, row_lists, rows_of, schema_of
from tests.support.xxhash_values import INTEGERS, STRINGS
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Rows
from torchrec_xd.errors import UserError


def one_column(feature: dict[str, Any], values: pa.Array) -> list[list[int]]:
    """The ids of a feature, row by row, as they stand in a batch."""
    schema = schema_of({"column": "x", "rows": ROWS, **feature})
    table = pa.table({"x": values, "user": [1] * len(values), "click": [0] * len(values)})
    batch = Collator(schema, 0)([[rows_of(schema, table, "a")], []], LoaderState(0, 1))
    return row_lists(batch.sequences if feature["kind"] == "sequence" else batch.bags)["x"]


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
    ids=str,
)
def test_any_integer_width(kind: pa.DataType) -> None:
    values = pa.array([0, None, 49, 7], kind)
    assert one_column({"kind": "id"}, values) == [[0], [], [49], [7]]
    assert one_column({"kind": "id"}, values.dictionary_encode()) == [[0], [], [49], [7]]
    assert one_column({"kind": "id", "hash": "mod", "rows": 10}, values) == [[0], [], [9], [7]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int32()),
        pa.large_list(pa.int64()),
        pa.list_(pa.uint16(), 2),
        pa.list_view(pa.int64()),
        pa.list_(pa.dictionary(pa.int8(), pa.int64())),
    ],
    ids=str,
)
def test_any_list(kind: pa.DataType) -> None:
    values = pa.array([[1, 2], None, [3, None], [4, 5]], kind)
    assert one_column({"kind": "bag"}, values) == [[1, 2], [], [3], [4, 5]]
    assert one_column({"kind": "sequence", "length": 1}, values) == [[2], [], [3], [5]]
    assert one_column({"kind": "bag"}, values.slice(1, 2)) == [[], [3]]


def test_lists_hidden_under_a_null_are_not_read() -> None:
    hidden = pa.ListArray.from_arrays(pa.array([0, 2, 3]), pa.array([999, 999, 4]), mask=pa.array([True, False]))
    schema = schema_of({"column": "x", "kind": "bag", "rows": ROWS})
    batch = pa.record_batch({"x": hidden, "user": pa.array([1, 1]), "click": pa.array([0, 0])})
    decoded = Decoder(schema, "a", labels=True, extra=()).decode(batch, Origin("f", 0))
    assert decoded.ids[0].values.tolist() == [4]
    assert decoded.ids[0].lengths.tolist() == [0, 1]


def test_columns_of_nothing_but_null() -> None:
    assert one_column({"kind": "id"}, pa.nulls(2)) == [[], []]
    assert one_column({"kind": "id"}, pa.nulls(2, pa.int32())) == [[], []]
    assert one_column({"kind": "id", "hash": "xxhash"}, pa.nulls(2, pa.string())) == [[], []]
    assert one_column({"kind": "id", "hash": "xxhash"}, pa.nulls(2, pa.string()).dictionary_encode()) == [[], []]
    assert one_column({"kind": "bag"}, pa.array([[], [None]], pa.list_(pa.null()))) == [[], []]
    assert one_column({"kind": "sequence", "length": 2}, pa.nulls(2, pa.list_(pa.int8()))) == [[], []]
    for feature in ({"kind": "bag"}, {"kind": "sequence", "length": 2}, {"kind": "bag", "hash": "xxhash"}):
        assert one_column(feature, pa.nulls(2)) == [[], []]


def test_mod_is_never_negative() -> None:
    feature = {"kind": "id", "hash": "mod", "rows": 7}
    assert one_column(feature, pa.array([-1, -7, -8, 13, 2**63 - 1])) == [[6], [0], [6], [6], [(2**63 - 1) % 7]]
    assert one_column(feature, pa.array([2**64 - 1, 5], pa.uint64())) == [[(2**64 - 1) % 7], [5]]


def test_tables_of_more_rows_than_32_bits_hold() -> None:
    assert one_column({"kind": "id", "rows": 2**40}, pa.array([2**40 - 1, 2**31])) == [[2**40 - 1], [2**31]]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int16(), pa.string())],
    ids=str,
)
def test_strings_are_hashed_by_xxh64(kind: pa.DataType) -> None:
    strings = [*list(STRINGS)[:6], None, b"abc"]
    values = pa.array([s if s is None or pa.types.is_binary(kind) else s.decode() for s in strings]).cast(kind)
    rows = 1_000_003
    expected = [[] if s is None else [STRINGS[s] % rows] for s in strings]
    feature = {"hash": "xxhash", "rows": rows}
    assert one_column({"kind": "id", **feature}, values) == expected
    assert one_column({"kind": "id", **feature}, values.slice(3)) == expected[3:]
    lists = pa.ListArray.from_arrays(pa.array([0, 3, 8], pa.int32()), values)
    whole = [[row for one in expected[start:stop] for row in one] for start, stop in ((0, 3), (3, 8))]
    assert one_column({"kind": "bag", **feature}, lists) == whole
    last = [expected[1] + expected[2], expected[5] + expected[7]]
    assert one_column({"kind": "sequence", "length": 2, **feature}, lists) == last


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_users_of_strings_are_the_upper_63_bits_of_their_xxh64(kind: pa.DataType) -> None:
    strings = [*list(STRINGS)[:7], b"abc"]
    values = pa.array(strings if pa.types.is_binary(kind) else [s.decode() for s in strings]).cast(kind)
    found = plain(user=values).user_B
    assert found.dtype == np.int64
    assert found.tolist() == [STRINGS[s] >> 1 for s in strings]
    assert found.min() >= 0


def test_integers_are_hashed_alike_whatever_their_width() -> None:
    feature = {"kind": "id", "hash": "xxhash", "rows": 2**31}
    expected = [[INTEGERS[value] % 2**31] for value in (0, 1, -1)]
    for kind in (pa.int8(), pa.int64()):
        assert one_column(feature, pa.array([0, 1, -1], kind)) == expected
        assert one_column(feature, pa.array([0, 1, -1], kind).dictionary_encode()) == expected
    assert one_column(feature, pa.array([0, 1], pa.uint64())) == expected[:2]


@pytest.mark.parametrize(
    ("feature", "values", "row", "value"),
    [
        ({"kind": "id"}, pa.array([3, ROWS]), 101, "50"),
        ({"kind": "id"}, pa.array([3, None, None, -1]), 103, "-1"),
        ({"kind": "id"}, pa.array([3, 2**64 - 1], pa.uint64()), 101, str(2**64 - 1)),
        ({"kind": "id"}, pa.array([3, 77], pa.uint8()).dictionary_encode(), 101, "77"),
        ({"kind": "bag"}, pa.array([[], [1, None], None, [2, 51]]), 103, "51"),
        ({"kind": "sequence", "length": 2}, pa.array([[99, 1, 2], [1, 2, 3, 60]]), 101, "60"),
    ],
)
def test_an_id_outside_its_table(feature: dict[str, Any], values: pa.Array, row: int, value: str) -> None:
    message = rf"^f\.parquet: row {row}, column 'x': {value} lies outside \[0, 50\).*raise 'rows'.*'hash: mod'"
    with pytest.raises(UserError, match=message):
        one_column(feature, values)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def plain(**columns: Any) -> Rows:
    """One dense feature `price`, rows of domain a."""
    schema = schema_of({"column": "price", "kind": "dense"}, weight="weight" if "weight" in columns else None)
    count = len(next(iter(columns.values())))
    filled = {"price": [0.5] * count, "user": [1] * count, "click": [1] * count, **columns}
    return rows_of(schema, pa.table(filled), "a", extra=tuple({"recent"} & set(columns)))


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.decimal128(22, 2)], ids=str
)
def test_dense_columns_of_any_number_type(kind: pa.DataType) -> None:
    assert plain(price=pa.array([2, None, 5]).cast(kind)).dense_BN.tolist() == [[2.0], [0.0], [5.0]]


def test_dense_columns_of_booleans_decimals_and_nulls() -> None:
    assert plain(price=[True, None, False]).dense_BN.tolist() == [[1.0], [0.0], [0.0]]
    assert plain(price=[Decimal("1.25"), Decimal("-0.50")]).dense_BN.tolist() == [[1.25], [-0.5]]
    assert plain(price=pa.nulls(2)).dense_BN.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("labels", [[0, 1], [False, True], [0.0, 1.0], pa.array([0, 1], pa.uint8())])
def test_labels_of_any_type(labels: Any) -> None:
    label_BT = plain(click=labels).label_BT
    assert label_BT[:, 0].tolist() == [0.0, 1.0]
    assert np.isnan(label_BT[:, 1]).all()


def test_labels_can_be_left_out() -> None:
    schema = schema_of({"column": "price", "kind": "dense"})
    rows = rows_of(schema, pa.table({"price": [1.0], "user": [1]}), "a", labels=False)
    assert rows.label_BT.shape == (1, 2)
    assert np.isnan(rows.label_BT).all()


def test_extra_columns() -> None:
    assert plain(recent=pa.array([3, None, 2], pa.int16())).extra_BK.tolist() == [[3], [-1], [2]]
    assert plain(recent=pa.nulls(2)).extra_BK.tolist() == [[-1], [-1]]
    assert plain(recent=pa.array([True, None, False])).extra_BK.tolist() == [[1], [-1], [0]]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("click", [0, 1, 2], "row 102, column 'click': 2 is no label"),
        ("click", [1, None], "row 101, column 'click': None is no label"),
        ("click", [1.0, 1e-300], "row 101, column 'click': 1e-300 is no label"),
        ("click", [float("nan"), 1.0], "row 100, column 'click': nan is no label"),
        ("price", [1.0, float("nan")], "row 101, column 'price': nan is no finite float32"),
        ("price", [float("-inf")], "row 100, column 'price': -inf is no finite float32"),
        ("price", [1.0, 1e39], r"row 101, column 'price': 1e\+39 is no finite float32"),
        ("weight", [1.0, 0.0], "row 101, column 'weight': 0.0 is no row weight"),
        ("weight", [1.0, None], "row 101, column 'weight': None is no row weight"),
        ("weight", [1.0, -2.0], "row 101, column 'weight': -2.0 is no row weight"),
        ("weight", pa.nulls(1), "row 100, column 'weight': None is no row weight"),
        ("click", pa.nulls(1), "row 100, column 'click': None is no label"),
        ("user", pa.nulls(1), "row 100, column 'user': None is no user"),
        ("weight", [float("inf")], "row 100, column 'weight': inf is no row weight"),
        ("user", ["anna", None], "row 101, column 'user': None is no user"),
        ("user", [1, 2, None], "row 102, column 'user': None is no user"),
        ("user", pa.array([1, 2**63], pa.uint64()), "row 101, column 'user': 9223372036854775808 does not fit"),
    ],
)
def test_a_value_that_breaks_a_rule(column: str, values: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^f\.parquet: {said}"):
        plain(**{column: values})


# ---- columns ---------------------------------------------------------------------------------------------------------


def faults(feature: dict[str, Any], **columns: Any) -> str:
    schema = schema_of({"column": "x", "rows": ROWS, **feature}, weight="weight")
    table = {"x": [1], "user": [1], "click": [0], "weight": [1.0], **columns}
    with pytest.raises(UserError) as error:
        Decoder(schema, "a", labels=True, extra=("recent",)).check(
            "f.parquet", pa.table({name: values for name, values in table.items() if values is not None}).schema
        )
    return str(error.value)


def test_a_missing_column_names_its_neighbours() -> None:
    said = faults({"kind": "id"}, weight=None, wieght=[1.0])
    assert said == (
        "f.parquet (domain 'a'): no column 'weight'; did you mean 'wieght'? Columns there: x, user, click, wieght"
    )
    assert "no column 'click'" in faults({"kind": "id"}, click=None)
    assert "no column 'user'" in faults({"kind": "id"}, user=None)


def test_every_fault_of_a_file_is_told_at_once() -> None:
    said = faults({"kind": "id"}, x=["a"], click=None, user=[1.5]).splitlines()
    assert len(said) == 3
    assert all(line.startswith("f.parquet (domain 'a'): ") for line in said)


@pytest.mark.parametrize(
    ("feature", "columns", "said"),
    [
        ({"kind": "id"}, {"x": ["a"]}, "'x' has type string; a feature of kind 'id' holds one integer per row; string"),
        ({"kind": "id", "hash": "mod"}, {"x": ["a"]}, "string ids need 'hash: xxhash' in the schema"),
        ({"kind": "id"}, {"x": pa.array(["a"]).dictionary_encode()}, "'x' has type dictionary<values=string"),
        ({"kind": "id"}, {"x": [1.5]}, "'x' has type double"),
        ({"kind": "id", "hash": "xxhash"}, {"x": [1.5]}, "'x' has type double"),
        ({"kind": "id"}, {"x": [[1]]}, "'x' has type list<item: int64>; a feature of kind 'id' holds one integer"),
        ({"kind": "bag"}, {"x": [1]}, "'x' has type int64; a feature of kind 'bag' holds a list of integers"),
        ({"kind": "bag"}, {"x": [["a"]]}, "'x' has type list<item: string>"),
        ({"kind": "sequence", "length": 1}, {"x": [[1.5]]}, "a feature of kind 'sequence' holds a list of integers"),
        ({"kind": "dense", "rows": None}, {"x": ["a"]}, "'x' has type string; a dense feature is a boolean or number"),
        ({"kind": "id"}, {"click": ["yes"]}, "'click' has type string; a label is 0 or 1"),
        ({"kind": "id"}, {"user": [0.5]}, "'user' has type double; the user column holds integers or strings: cast it"),
        ({"kind": "id"}, {"weight": [True], "recent": [1.5]}, "'recent' has type double; a column that metrics slice"),
        ({"kind": "id"}, {"weight": ["w"]}, "'weight' has type string; row weights are numbers"),
    ],
)
def test_a_column_of_a_wrong_type(feature: dict[str, Any], columns: dict[str, Any], said: str) -> None:
    assert said in faults(feature, **columns)


def test_a_column_that_is_there_twice() -> None:
    schema = schema_of({"column": "x", "kind": "id", "rows": ROWS})
    twice = pa.table([[1], [2], [1], [0]], names=["x", "x", "user", "click"]).schema
    with pytest.raises(UserError, match="column 'x' is there 2 times"):
        Decoder(schema, "a", labels=True, extra=()).check("f", twice)


def test_a_column_may_have_several_roles() -> None:
    schema = schema_of({"column": "user", "kind": "id", "rows": ROWS}, {"column": "weight", "kind": "dense"})
    rows = rows_of(schema, pa.table({"user": [4, 5], "weight": [1, 2], "click": [0, 1]}), "a", extra=("user",))
    assert rows.ids[0].values.tolist() == rows.user_B.tolist() == rows.extra_BK[:, 0].tolist() == [4, 5]


def test_features_of_other_domains_are_neither_asked_for_nor_read() -> None:
    own, other = ({"column": name, "kind": "dense", "domains": [name]} for name in ("a", "b"))
    decoder = Decoder(schema_of(own, other, weight="weight"), "a", labels=True, extra=("recent", "user"))
    assert decoder.columns == ("a", "click", "user", "weight", "recent")
