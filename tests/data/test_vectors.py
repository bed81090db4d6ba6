"""Vectors: from every type that Parquet has for them to a batch, and what is said of bad ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.data_tables import rows_of, schema_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Rows
from torchrec_xd.data.vectors import vectors
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

TEXT = {"column": "text", "kind": "vector", "length": 2}
IMAGE = {"column": "image", "kind": "vector", "length": 3, "indicator": True, "domains": ["a"]}
SOUND = {"column": "sound", "kind": "vector", "length": 1, "domains": ["b"], "group": "specific"}


def rows(schema: Schema, domain: str = "a", **columns: object) -> Rows:
    count = len(next(iter(columns.values())))  # type: ignore[arg-type]
    label = {"a": "click", "b": "buy"}[domain]
    return rows_of(schema, pa.table({**columns, "user": [1] * count, label: [0] * count}), domain)


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_lists_of_floats(lists: object, number: pa.DataType) -> None:
    def column(*values: list[float] | None) -> pa.Array:
        typed = [None if value is None else [np.float16(one) for one in value] for value in values]
        return pa.array(typed, lists(number))  # type: ignore[operator]

    schema = schema_of(TEXT)
    given = rows(schema, text=column([0.5, 2], [3, -4]))
    [found] = given.vectors
    assert found.tolist() == [[0.5, 2], [3, -4]]
    assert found.dtype == (np.float16 if number == pa.float16() else np.float32)
    nulls = rows(schema, text=column([1, 2], None, [3, 4], None))
    assert nulls.vectors[0].tolist() == [[1, 2], [0, 0], [3, 4], [0, 0]]
    batch = Collator(schema, 0)([[given, nulls.slice(1, 3)], []], LoaderState(0, 1))
    assert batch.vector_BV.dtype == torch.float32
    assert batch.vector_BV.tolist() == [[0.5, 2], [3, -4], [0, 0], [3, 4]]


def test_a_column_without_nulls_is_a_view_of_the_file() -> None:
    array = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))
    found = vectors(array.slice(1), schema_of(TEXT).features[0], Origin("f", 0))
    assert found.tolist() == [[3, 4], [5, 6]]
    buffer = array.buffers()[-1]
    assert buffer.address <= found.__array_interface__["data"][0] < buffer.address + buffer.size


def test_domains_lie_side_by_side_and_nulls_set_their_indicator() -> None:
    schema = schema_of(TEXT, IMAGE, SOUND)
    image = pa.array([[1.0, 2, 3], None])
    of_a = rows(schema, text=pa.nulls(2), image=image)
    of_b = rows(schema, "b", text=pa.array([[7.0, 8]]), sound=pa.array([[9.0]], pa.list_(pa.float32())))
    assert [part.shape for part in of_b.vectors] == [(1, 2), (1, 0), (1, 1)]  # what a domain lacks takes no memory
    batch = Collator(schema, 0)([[of_a], [of_b]], LoaderState(0, 1))
    assert batch.vector_BV.tolist() == [[0, 0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 0, 1, 0], [7, 8, 0, 0, 0, 0, 9]]
    assert batch.padding().vector_BV.tolist() == [[0] * 7]
    empty = Collator(schema, 0)([[], []], LoaderState(0, 1))
    assert empty.vector_BV.shape == (0, 7)


def test_gathered_rows_are_those_of_all_parts() -> None:
    schema = schema_of(TEXT, IMAGE, SOUND)
    halves = pa.array([[np.float16(3), np.float16(4)]], pa.list_(pa.float16()))
    parts = [
        rows(schema, text=pa.array([[1.0, 2]]), image=pa.array([[1.0, 1, 1]])),
        rows(schema, text=halves, image=pa.nulls(1)),
    ]
    both = Rows.gather(parts, np.array([1, 0, 1]), Decoder(schema, "a", labels=True, extra=()).id_types)
    assert both.vectors[0].tolist() == [[3, 4], [1, 2], [3, 4]]
    assert both.vectors[1].tolist() == [[0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert both.vectors[2].shape == (3, 0)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([[1.0, 2], None, [3.0]]),
            "row 102, column 'text': 1 is how many numbers this vector has; the schema",
        ),
        (pa.array([[1.0, 2], [1.0, 2, 3]]), "row 101, column 'text': 3 is how many numbers"),
        (
            pa.array([None, [1.0, 2], [1.0, None]]),
            "row 102, column 'text': None is number 1 of a vector, and no finite",
        ),
        (pa.array([None, [np.nan, 2]]), "f.parquet: row 101, column 'text': nan is number 0 of a vector"),
        (pa.array([[1.0, 1e39]]), "row 100, column 'text': 1e+39 is number 1 of a vector, and no finite float32"),
        (pa.array([["a", "b"]]), "has type list<element: string>; a vector holds a list of 2 numbers per row"),
        (pa.array([[1, 2]]), "has type list<element: int64>; a vector holds a list of 2 numbers per row"),
        (pa.array([[1.0, 2, 3]], pa.list_(pa.float32(), 3)), "has type fixed_size_list<element: float>[3]; a vector"),
        (pa.array([1.0]), "has type double; a vector holds a list of 2 numbers per row (its 'length')"),
    ],
)
def test_a_bad_vector_is_named(column: pa.Array, said: str) -> None:
    with pytest.raises(UserError) as error:
        rows(schema_of(TEXT), text=column)
    assert said.replace("element:", "") in str(error.value).replace("element:", "").replace("item:", "")
