"""The reference of schema and Parquet: it names every key, and what it says of types and bounds is so."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.data_tables import rows_of, schema_of
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Domain, Schema, Task
from torchrec_xd.training.checks import HOPELESS, LARGE, WEIGHTS

PAGE = (Path(__file__).parents[2] / "docs" / "data_format.md").read_text(encoding="utf-8")
NUMBERS = [pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(5, 2)]
STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
IDS = [pa.int8(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())]


@pytest.mark.parametrize("settings", [Schema, Domain, Task, Feature])
def test_every_key_is_explained(settings):
    missing = [key for key in settings.model_fields if f"`{key}`" not in PAGE and f"`{key}:" not in PAGE]
    assert [key for key in missing if f"`domains.NAME.{key}`" not in PAGE] == []


def test_bounds_are_those_of_the_code():
    for bound, words in ((LARGE, "reaches beyond {}"), (HOPELESS, "beyond {}"), (WEIGHTS, "the largest {} times")):
        assert words.format(f"{bound:,.0f}") in PAGE


@pytest.mark.parametrize(
    ("column", "kinds", "feature"),
    [
        ("user", [pa.int8(), pa.uint32(), *STRINGS], {"kind": "dense"}),
        ("click", NUMBERS, {"kind": "dense"}),
        ("x", NUMBERS, {"kind": "dense"}),
        ("x", IDS, {"kind": "id", "rows": 9}),
        ("x", [*IDS, *STRINGS], {"kind": "id", "rows": 9, "hash": "xxhash"}),
    ],
)
def test_types_that_are_read(column, kinds, feature):
    schema = schema_of({"column": "x", **feature})
    for kind in kinds:
        dictionary = pa.types.is_dictionary(kind)
        inner = kind.value_type if dictionary else kind
        values = (pa.array(["1", "0"]) if inner in STRINGS else pa.array([1.0, 0.0])).cast(inner)
        values = values.dictionary_encode() if dictionary else values
        columns = {"user": [1, 2], "click": [1, 0], "x": [1, 0], column: values}
        assert len(rows_of(schema, pa.table(columns), "a")) == 2, kind
