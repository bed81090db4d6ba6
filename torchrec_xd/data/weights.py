"""Weighted bags: lists of ids with lists of weights, or lists of pairs, to ids and flat weights.

Shape legend: B rows, N ids of all rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_xd.data.column_types import is_list
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Floats, Integers
from torchrec_xd.feature import Feature


def ids_and_weights(batch: pa.RecordBatch, feature: Feature, origin: Origin) -> tuple[pa.Array, Floats | None]:
    """The ids of a feature as its column has them, pairs as lists of ids, and the weights of all of them `[N]`.

    Weights of null ids are 0; without `Feature.weights` they are None.

    Raises:
        UserError: a row has more or fewer weights than ids, or a weight is null or no finite float32.
    """
    array = batch.column(feature.column)
    if feature.weights is None:
        return array, None
    if feature.weights == feature.column:
        array, weights = _pairs(array)
    else:
        weights = batch.column(feature.weights)
    lengths = list_lengths(array)
    wrong = lengths != list_lengths(weights)
    if wrong.any():
        row = int(np.argmax(wrong))
        rule = f"is how many weights this row has, for {lengths[row]} ids of '{feature.column}'; write one for each"
        raise origin.fault(feature.weights, row, int(list_lengths(weights)[row]), rule)
    return array, _numbers(_flat(array), _flat(weights), lengths, feature, origin)


def id_type(kind: pa.DataType) -> pa.DataType:
    """Type of the ids in a column: its own, or that of lists, pairs or maps."""
    if pa.types.is_map(kind):
        return kind.key_type
    kind = kind.value_type if is_list(kind) else kind
    return kind.field(0).type if pa.types.is_struct(kind) else kind


def as_lists(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Maps as lists of pairs; all else as it is."""
    kind = column.type
    if not pa.types.is_map(kind):
        return column
    return column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))


def _pairs(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Lists of pairs as two columns of lists; no list, as from null, is an empty one."""
    if pa.types.is_null(array.type):
        return array, array
    array = as_lists(array)
    offsets = pa.array(np.concatenate([[0], np.cumsum(list_lengths(array))]))
    ids, weights = array.flatten().flatten()  # in here a null pair is a null of both
    return pa.LargeListArray.from_arrays(offsets, ids), pa.LargeListArray.from_arrays(offsets, weights)


def list_lengths(array: pa.Array) -> Integers:
    """How many values each row's list has [B]; a null list has none."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=np.int64)
    lengths: Integers = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def _flat(array: pa.Array) -> pa.Array:
    return pa.nulls(0) if pa.types.is_null(array.type) else array.flatten()


def _numbers(ids: pa.Array, weights: pa.Array, lengths: Integers, feature: Feature, origin: Origin) -> Floats:
    with np.errstate(over="ignore"):  # a number too large for float32 becomes inf and is refused below
        numbers = weights.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
        found: Floats = numbers.astype(np.float32)
    if not np.isfinite(found).all():
        missing = ids.is_null().to_numpy(zero_copy_only=False) & weights.is_null().to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(found) & ~missing
        if bad.any():
            at = int(np.argmax(bad))
            row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
            rule = "is no weight; weights are finite: 1 has no effect, 0 leaves the id out"
            raise origin.fault(feature.weights or feature.column, row, weights[at].as_py(), rule)
        found[missing] = 0.0
    return found
