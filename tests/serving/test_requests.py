"""Bodies to rows: what the training decoder makes of the same columns; what is wrong is said in the reader's words."""

import re

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.serving.column_values import arrow_values, request_type
from torchrec_xd.serving.requests import RequestReader, side_schema

SCHEMA = Schema.model_validate(
    {
        "name": "shop",
        "user": "user",
        "domains": {"goods": {"role": "target", "train": "x"}},
        "tasks": [{"label": "click", "domain": "goods"}],
        "features": [
            {"column": "user", "kind": "id", "group": "user", "rows": 100},
            {"column": "item", "kind": "id", "group": "specific", "domains": ["goods"], "rows": 50},
            {"column": "hist", "kind": "sequence", "group": "sequence", "table": "item", "rows": 50, "length": 3},
            {"column": "tags", "kind": "bag", "group": "shared", "rows": 9, "weights": "tag_weights"},
            {"column": "brand", "kind": "id", "group": "shared", "rows": 40, "hash": "xxhash"},
            {"column": "price", "kind": "dense", "group": "shared", "log1p": True},
            {"column": "hour", "kind": "dense", "group": "context"},
            {"column": "taste", "kind": "vector", "group": "user", "length": 2},
        ],
    }
)
TYPES = {
    "user": pa.int64(),
    "item": pa.int64(),
    "hist": pa.list_(pa.int64()),
    "tags": pa.list_(pa.int64()),
    "tag_weights": pa.list_(pa.float64()),
    "brand": pa.string(),
    "price": pa.float64(),
    "hour": pa.float64(),
    "taste": pa.list_(pa.float64()),
}
READER = RequestReader(SCHEMA, TYPES)
REQUEST = {"user": 7, "hist": [1, 2, 3, 4], "hour": 5, "taste": [0.5, 1]}
CANDIDATES = {
    "item": [4, 49, None],
    "tags": [[1, 2], [], None],
    "tag_weights": [[1, 0.5], [], None],
    "brand": ["a", "ü", None],
    "price": [1, 2.5, None],
}


def body(request=(), candidates=(), without=()):
    given = {"request": {**REQUEST, **dict(request)}, "candidates": {**CANDIDATES, **dict(candidates)}}
    return {place: {n: v for n, v in columns.items() if n not in without} for place, columns in given.items()}


def message(content, most=1000):
    with pytest.raises(UserError) as error:
        READER.read(content, most)
    return str(error.value)


def test_rows_are_those_of_the_training_decoder():
    found, user = READER.read(orjson.loads(orjson.dumps(body())), 1000)
    assert (user, len(found), found.request_of_B, found.unseen) == (7, 3, None, {})
    columns = {
        name: pa.array([REQUEST[name]] * 3 if name in REQUEST else CANDIDATES[name], TYPES[name]) for name in TYPES
    }
    decoder = Decoder(SCHEMA, "goods", labels=False, extra=())
    expected = decoder.decode(pa.RecordBatch.from_pydict(columns), Origin("x", 0))
    order = [f.column for f in SCHEMA.features if f.has_table]
    for own, rows in (("request", found.request), ("candidate", found.candidates)):
        names = [f.column for f in side_schema(SCHEMA, own).features if f.has_table]
        assert names == {"request": ["user", "hist"], "candidate": ["item", "tags", "brand"]}[own]
        for name, ids in zip(names, rows.ids, strict=True):
            theirs = expected.ids[order.index(name)].slice(0, len(rows))
            assert ids.lengths.tolist() == theirs.lengths.tolist()
            np.testing.assert_array_equal(ids.values, theirs.values)
            np.testing.assert_array_equal(ids.all_weights(), theirs.all_weights())
    np.testing.assert_array_equal(found.candidates.dense_BN[:, 0], expected.dense_BN[:, 0])
    np.testing.assert_array_equal(found.request.dense_BN, expected.dense_BN[:1, 1:])
    np.testing.assert_array_equal(found.request.vectors[0], [[0.5, 1.0]])


def test_ids_without_a_row_are_left_out_and_counted():
    found, _ = READER.read(body({"hist": [1, 99, 3]}, {"item": [50, -1, 3]}), 1000)
    assert found.unseen == {"item": 2, "hist": 1}
    assert found.candidates.ids[0].lengths.tolist() == [0, 0, 1]
    assert found.request.ids[1].values.tolist() == [1, 3]
    assert READER.read(body(), 1000)[0].unseen == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (body({"hisst": []}, without=["hist"]), "request: unknown column 'hisst'; did you mean 'hist'?\n"),
        (body({"hisst": []}, without=["hist"]), "request: missing 'hist'; null stands for what is not known"),
        (body(without=["item", "price"]), "candidates: missing 'item', 'price'; null stands for"),
        (
            body({"item": 3}),
            "request: unknown column 'item'; it belongs to 'candidates'; columns are: user, hist, hour",
        ),
        (body({}, {"item": [1.5, 2, 3]}), "candidates: row 0, column 'item': 1.5 is not an integer of 64 bits"),
        (body({}, {"item": [1, True, 3]}), "candidates: row 1, column 'item': True is not an integer of 64 bits"),
        (body({}, {"item": [1, 2**63, 3]}), "row 1, column 'item': 9223372036854775808 is not an integer of 64 bits"),
        (body({}, {"item": ["4", 2, 3]}), "candidates: row 0, column 'item': '4' is not an integer of 64 bits"),
        (body({}, {"brand": ["a", 2, "c"]}), "candidates: row 1, column 'brand': 2 is not a text"),
        (body({}, {"tags": [[1], "ab", []]}), "row 1, column 'tags': 'ab' is not a list of integers of 64 bits"),
        (
            body({}, {"tags": [[1], [1, "b"], []]}),
            "row 1, column 'tags': [1, 'b'] is not a list of integers of 64 bits",
        ),
        (body({}, {"tags": [[1, 2], [3], []]}), "candidates: row 1, column 'tag_weights': 0 is how many weights"),
        (body({}, {"price": [1, 2, 1e39]}), None),
        (body({}, {"price": ["1", 2, 3]}), "candidates: row 0, column 'price': '1' is not a number"),
        (body({"taste": [1, 2, 3]}), "request: row 0, column 'taste': 3 is how many numbers this vector has"),
        (body({"taste": [1, None]}), "request: row 0, column 'taste': None is number 1 of a vector"),
        (body({}, {"item": [1, 2]}), "columns have a value for each row; 'item' has 2, and 'tags' 3"),
        (body({}, {"item": 1}), "candidates: 'item' is a list with a value for each candidate, not 1"),
        (body({"user": None}), "request: 'user' is missing; it names the user, an integer or a text"),
        (body({"user": True}), "request: 'user' is True; it names the user"),
        ([], "the body is an object of columns, not []"),
        ({"rows": []}, "the body has the keys request and candidates, and no 'rows'"),
        ({"request": 1}, "'request' is an object of columns, not 1"),
    ],
)
def test_what_is_wrong_is_said(content, expected):
    if expected is None:
        assert len(READER.read(content, 1000)[0]) == 3
        return
    assert expected in message(content)


def test_too_many_candidates_are_refused_before_they_are_read():
    assert message(body(), most=2) == "candidates: 3 are more than the 2 that a request may have; split it"


def test_a_request_of_several_users_has_a_row_for_each_candidate():
    once = {name: [value] * 3 for name, value in REQUEST.items()} | {"hist": [[1], [], [2, 3]]}
    found = READER.read_columns(once, CANDIDATES, 1000)
    assert found.request_of_B.tolist() == [0, 1, 2]
    assert found.request.ids[1].lengths.tolist() == [1, 0, 2]
    with pytest.raises(UserError, match="request: 2 rows for 3 candidates; give one, or one for each"):
        READER.read_columns({name: values[:2] for name, values in once.items()}, CANDIDATES, 1000)


def test_users_that_no_feature_reads_are_counted_as_well():
    reader = RequestReader(SCHEMA.without(("user",)), TYPES)
    once = {name: [value] * 3 for name, value in REQUEST.items()}
    assert len(reader.read_columns(once, CANDIDATES, 1000).request) == 3
    with pytest.raises(UserError, match="columns have a value for each row; 'hist' has 3, and 'user' 1"):
        reader.read_columns({**once, "user": [7]}, CANDIDATES, 1000)


def test_no_candidates_are_no_rows():
    found, _ = READER.read(body({}, {name: [] for name in CANDIDATES}), 1000)
    assert (len(found), len(found.request)) == (0, 1)


VALUES = {
    "int64": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    "double": st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False)),
    "string": st.one_of(st.none(), st.text()),
}
ANY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.sampled_from([2**63, 2**70, -(2**64)]),
        st.floats(allow_nan=False),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(VALUES)), st.booleans())
def test_values_of_the_right_type_stay_as_they_are(data, kind, nested):
    one = st.lists(VALUES[kind], max_size=4) if nested else VALUES[kind]
    values = data.draw(st.lists(one, max_size=6))
    arrow = pa.type_for_alias(kind)
    found = arrow_values(values, pa.list_(arrow) if nested else arrow, "x", "y")
    assert found.to_pylist() == values


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=4), st.sampled_from(sorted(TYPES)))
def test_any_other_value_is_refused_in_words(values, name):
    said = ""
    try:
        found = arrow_values(values, TYPES[name], "candidates", name).to_pylist()
    except UserError as error:
        said, found = str(error), None
    assert found == values or re.match(rf"candidates: row \d, column '{name}': .* is not a", said)


def test_integers_that_no_float_holds_are_rounded():
    assert arrow_values([2**53 + 1, None], pa.float64(), "x", "y").to_pylist() == [2.0**53, None]
    assert arrow_values([[2**53 + 1]], pa.list_(pa.float64()), "x", "y").to_pylist() == [[2.0**53]]
    assert arrow_values([True, 2**53 + 1, 0.5], pa.float64(), "x", "y").to_pylist() == [1.0, 2.0**53, 0.5]


def test_types_of_requests_are_wide():
    assert request_type(pa.dictionary(pa.int32(), pa.large_string())) == pa.string()
    assert request_type(pa.large_list(pa.int8())) == pa.list_(pa.int64())
    assert request_type(pa.float16()) == pa.float64()
    assert request_type(pa.map_(pa.int32(), pa.float32())) == pa.list_(
        pa.struct([("key", pa.int64()), ("value", pa.float64())])
    )
