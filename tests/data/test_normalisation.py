"""Dense numbers with a normalisation in the schema: by hand, in the order clip, log1p, mean, std."""

import math

import numpy as np
import pyarrow as pa
import pytest

from tests.support.data_tables import rows_of, schema_of
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate


def read(values, **scale):
    schema = schema_of({"column": "price", "kind": "dense", **scale})
    count = len(values)
    return rows_of(schema, pa.table({"price": values, "user": [1] * count, "click": [0] * count}), "a").dense_BN[:, 0]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ({}, [0, -3, 1e6, 0]),
        ({"mean": 2, "std": 4}, [-0.5, -1.25, (1e6 - 2) / 4, 0]),
        ({"mean": 2}, [-2, -5, 1e6 - 2, 0]),
        ({"std": 4}, [0, -0.75, 250_000, 0]),
        ({"log1p": True}, [0, -math.log(4), math.log(1_000_001), 0]),
        ({"clip": [-1, 7]}, [0, -1, 7, 0]),
        (
            {"clip": [-1, 7], "log1p": True, "mean": 1, "std": 2},
            [-0.5, (-math.log(2) - 1) / 2, (math.log(8) - 1) / 2, 0],
        ),
        ({"missing": 5}, [0, -3, 1e6, 5]),
        ({"missing": 5, "mean": 1, "std": 2}, [-0.5, -2, (1e6 - 1) / 2, 2]),
        ({"missing": 100, "clip": [-1, 7], "log1p": True}, [0, -math.log(2), math.log(8), math.log(8)]),
    ],
)
def test_by_hand(scale, expected):
    np.testing.assert_allclose(read([0.0, -3.0, 1e6, None], **scale), np.float32(expected), rtol=1e-6)


def test_arithmetic_is_in_float64():
    """Neighbouring seconds of 2026 are one number in float32."""
    seconds = [1_795_000_000, 1_795_000_001]
    assert len(set(np.float32(seconds))) == 1
    assert read(seconds, mean=1_795_000_000, std=0.5).tolist() == [0, 2]


def test_infinite_numbers_are_clipped_and_nan_is_refused():
    assert read([math.inf, -math.inf], clip=[-2, 3]).tolist() == [3, -2]
    with pytest.raises(UserError, match=r"row 101, column 'price': nan is no finite float32; set 'clip'.*write null"):
        read(pa.array([0.0, math.nan], from_pandas=False), clip=[-2, 3])
    with pytest.raises(UserError, match=r"row 100, column 'price': 1e\+38 is no finite float32"):
        read([1e38], std=1e-10)


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"kind": "id", "rows": 5, "mean": 1}, "'mean' belongs to dense features only"),
        ({"kind": "bag", "rows": 5, "log1p": True}, "'log1p' belongs to dense features only"),
        ({"kind": "dense", "clip": [2, 2]}, r"'clip' is \[LOWEST, GREATEST\], and \[2.0, 2.0\] is not"),
        ({"kind": "dense", "std": 0}, "features.0.std.*greater than 0"),
        ({"kind": "dense", "mean": math.nan}, "features.0.mean.*finite"),
    ],
)
def test_what_is_refused(feature, said):
    content = schema_of({"column": "price", "kind": "dense"}).model_dump()
    content["features"] = [{"column": "x", "group": "shared", **feature}]
    with pytest.raises(UserError, match=said):
        validate(Schema, content, "f")
