"""Lookups without torch, by hand."""

import numpy as np
import pytest

from torchrec_xd.data.rows import Jagged
from torchrec_xd.serving.artifact import TableEntry
from torchrec_xd.serving.tables import Tables

WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 12.0]], dtype=np.float32)
IDS = np.array([0, 2, 1])


@pytest.mark.parametrize(
    ("pooling", "weights", "wanted"),
    [
        ("sum", None, [[6.0, 14.0], [0.0, 0.0], [3.0, 4.0]]),
        ("mean", None, [[3.0, 7.0], [0.0, 0.0], [3.0, 4.0]]),
        ("sum", [0.5, 2.0, 1.0], [[10.5, 25.0], [0.0, 0.0], [3.0, 4.0]]),
    ],
)
def test_a_bag_is_the_sum_or_mean_of_its_vectors_and_zero_without_ids(pooling, weights, wanted):
    tables = Tables({"t": TableEntry(rows=3, dim=2, dtype="fp32", pooling=pooling)}, {"t": WEIGHT})
    given = None if weights is None else np.array(weights, dtype=np.float32)
    bags = Jagged.of_lengths(IDS, np.array([2, 0, 1]), given)
    np.testing.assert_array_equal(tables.pooled("t", bags), wanted)
