"""What is learnt of numbers that are few, equal or missing."""

import ibis
import pytest
from ibis import _

from torchrec_xd.prepare.assembly import bucket
from torchrec_xd.prepare.learning import learn_number
from torchrec_xd.prepare.recipe import RecipeFeature


def quantiles(values, count):
    feature = RecipeFeature(column="x", kind="id", group="context", quantiles=count)
    texts = [None if value is None else str(value) for value in values]  # a NaN in Python would arrive as null
    table = ibis.memtable({"value": texts}, schema={"value": "string"}).mutate(value=_.value.cast("float64"))
    edges = learn_number(table, feature).edges
    found = table.select(row=bucket(table.value, edges)).row.to_pyarrow().to_pylist()
    return edges, found


@pytest.mark.parametrize(
    ("values", "count", "edges", "rows"),
    [
        ([0.0, 1.0, 0.0, 1.0], 2, (1.0,), [1, 2, 1, 2]),
        ([0.0, 0.0, 0.0, 1.0], 2, (1.0,), [1, 1, 1, 2]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 4, (3.0, 5.0, 7.0), [1, 1, 2, 2, 3, 3, 4, 4]),
        ([5.0, 5.0], 3, (), [1, 1]),
        ([None, None], 3, (), [0, 0]),
        ([float("nan"), 1.0, None, 2.0], 2, (2.0,), [0, 1, 0, 2]),
    ],
)
def test_quantiles_tell_equal_and_missing_values_apart(values, count, edges, rows):
    assert quantiles(values, count) == (edges, rows)
