"""Lists of a fixed number of floats: Arrow columns to NumPy matrices, as views where rows have no nulls.

Shape legend: B rows, L numbers of a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Vectors
from torchrec_xd.feature import Feature


def vectors(array: pa.Array, feature: Feature, origin: Origin) -> Vectors:
    """The rows of a vector feature, `[B, Feature.width]`: float16 stays, all else becomes float32; null is zeros.

    Raises:
        UserError: a list has another length, or holds a null or what is no finite float32.
    """
    valid_B = array.is_valid().to_numpy(zero_copy_only=False)
    _check_lengths(array, feature, origin)
    given_BL: Vectors = np.zeros((0, feature.length or 0), dtype=np.float32)
    if not pa.types.is_null(array.type):
        given_BL = _numbers(array.flatten(), np.flatnonzero(valid_B), feature, origin)
    if len(given_BL) == len(array) and not feature.indicator:
        return given_BL
    vector_BL = np.zeros((len(array), feature.width), dtype=given_BL.dtype)
    vector_BL[valid_B, : feature.length] = given_BL
    if feature.indicator:
        vector_BL[~valid_B, -1] = 1.0
    return vector_BL


def _check_lengths(array: pa.Array, feature: Feature, origin: Origin) -> None:
    if pa.types.is_null(array.type):
        return
    lengths = pc.list_value_length(array)
    wrong = pc.not_equal(lengths, feature.length).fill_null(False).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = f"is how many numbers this vector has; the schema says 'length: {feature.length}': correct one of them"
        raise origin.fault(feature.column, row, lengths[row].as_py(), rule)


def _numbers(values: pa.Array, rows: NDArray[Any], feature: Feature, origin: Origin) -> Vectors:
    """The numbers of the rows that are no null, one after the other."""
    length = feature.length or 0

    def fault(at: int) -> Exception:
        rule = f"is number {at % length} of a vector, and no finite float32; correct it, or make the whole vector null"
        return origin.fault(feature.column, int(rows[at // length]), values[at].as_py(), rule)

    if values.null_count:
        raise fault(int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))))
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype == np.float64:
        with np.errstate(over="ignore"):  # a number too large for float32 becomes inf and is refused below
            numbers = numbers.astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        raise fault(int(np.argmin(finite)))
    vector_BL: Vectors = numbers.reshape(-1, length)
    return vector_BL
