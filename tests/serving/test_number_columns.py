"""Plain columns are read without Arrow as the training decoder reads them; odd ones are left to it."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.schema import Schema
from torchrec_xd.serving.number_columns import NumberColumns
from torchrec_xd.serving.requests import RequestReader, side_schema

FEATURES = [
    {"column": "item", "kind": "id", "group": "shared", "rows": 50},
    {"column": "shop", "kind": "id", "group": "shared", "rows": 5},
    {"column": "price", "kind": "dense", "group": "shared", "log1p": True, "missing": 3.0},
    {"column": "count", "kind": "dense", "group": "shared"},
    {"column": "hist", "kind": "sequence", "group": "sequence", "table": "item", "rows": 50, "length": 3},
]
TYPES = {
    "item": pa.int64(),
    "shop": pa.int64(),
    "price": pa.float64(),
    "count": pa.int64(),
    "hist": pa.list_(pa.int64()),
}
SCHEMA = Schema.model_validate(
    {
        "name": "shop",
        "user": "user",
        "domains": {"goods": {"role": "target", "train": "x"}},
        "tasks": [{"label": "click", "domain": "goods"}],
        "features": FEATURES,
    }
)
CANDIDATES, REQUEST = side_schema(SCHEMA, "candidate"), side_schema(SCHEMA, "request")
ID = st.one_of(st.none(), st.integers(0, 49), st.sampled_from([-1, 50, -(2**63), 2**63 - 1]))
NUMBER = st.one_of(st.none(), st.integers(-(2**63), 2**63), st.floats(-1e30, 1e30))
COUNT = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
ROW = st.fixed_dictionaries({"item": ID, "shop": ID, "price": NUMBER, "count": COUNT})


def by_the_decoder(schema, columns, count):
    decoder = Decoder(schema, "goods", labels=False, extra=())
    arrays = {
        name: pa.array([float(v) if v is not None and name == "price" else v for v in values], TYPES[name])
        for name, values in columns.items()
    }
    arrays[schema.user] = pa.array(np.zeros(count, dtype=np.int64))
    return decoder.decode(pa.RecordBatch.from_pydict(arrays), Origin("x", 0)), +decoder.dropped


def assert_same(found, expected):
    assert len(found) == len(expected)
    for own, theirs in zip(found.ids, expected.ids, strict=True):
        assert own.lengths.tolist() == theirs.lengths.tolist()
        assert own.values.tolist() == theirs.values.tolist()
    np.testing.assert_array_equal(found.dense_BN, expected.dense_BN)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6))
def test_ids_and_numbers_are_those_of_the_decoder(rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    dropped = Counter()
    found = NumberColumns(CANDIDATES, TYPES).read(columns, len(rows), dropped)
    expected, theirs = by_the_decoder(CANDIDATES, columns, len(rows))
    assert_same(found, expected)
    assert +dropped == theirs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.lists(ID.filter(lambda x: x is not None), max_size=6)), min_size=1, max_size=4))
def test_sequences_are_those_of_the_decoder(lists):
    dropped = Counter()
    found = NumberColumns(REQUEST, TYPES).read({"hist": lists}, len(lists), dropped)
    expected, theirs = by_the_decoder(REQUEST, {"hist": lists}, len(lists))
    assert_same(found, expected)
    assert +dropped == theirs


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *(("item", odd) for odd in (True, 1.0, 1e20, "1", [1], 2**63, -(2**63) - 1, {"a": 1})),
        *(("count", odd) for odd in (False, 1.0, "1", [1])),
        *(("price", odd) for odd in (True, "1", "1e5", "e", "null", [1.0], float("inf"), {})),
    ],
)
def test_what_is_odd_is_left_to_the_decoder(name, odd):
    columns = {"item": [1, 2], "shop": [1, 2], "price": [1.0, 2], "count": [1, 2]}
    columns[name] = [columns[name][0], odd]
    dropped = Counter()
    assert NumberColumns(CANDIDATES, TYPES).read(columns, 2, dropped) is None
    assert not dropped


@pytest.mark.parametrize("odd", [1, "12", [1.0], [True], ["1"], [[1]], [None], {}])
def test_odd_sequences_are_left_to_the_decoder(odd):
    assert NumberColumns(REQUEST, TYPES).read({"hist": [[1], odd]}, 2, Counter()) is None


def test_a_side_with_other_kinds_of_columns_is_left_to_the_decoder():
    assert NumberColumns(CANDIDATES, TYPES).fits
    for change in ({"hash": "xxhash"}, {"hash": "mod"}, {"kind": "bag"}):
        first = SCHEMA.features[0].model_copy(update=change)
        own = SCHEMA.model_copy(update={"features": (first, *SCHEMA.features[1:])})
        kinds = {**TYPES, "item": pa.list_(pa.int64())} if "kind" in change else TYPES
        assert not NumberColumns(side_schema(own, "candidate"), kinds).fits
    assert not NumberColumns(CANDIDATES, {**TYPES, "item": pa.string()}).fits


def test_requests_are_read_this_way(monkeypatch):
    """As long as nothing is odd, no decoder is asked."""
    reader = RequestReader(SCHEMA, TYPES)

    def never(*_):
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr(Decoder, "decode", never)
    columns = {"item": [1, None, 99], "shop": [1, 2, 3], "price": [1, 2.5, None], "count": [1, 2, 3]}
    read, _ = reader.read({"request": {"user": 7, "hist": [1, 2]}, "candidates": columns}, 10)
    assert read.unseen == {"item": 1}
    assert read.candidates.ids[0].lengths.tolist() == [1, 0, 0]
    with pytest.raises(AssertionError, match="was asked"):
        reader.read({"request": {"user": 7, "hist": []}, "candidates": {**columns, "price": [1, True, 2]}}, 10)
