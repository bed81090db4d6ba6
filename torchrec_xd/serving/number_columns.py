"""Plain columns of a request to rows without Arrow: ids as integers, sequences of them, and numbers.

It reads what needs no word of explanation. Whatever is odd (another type, a number too large) it leaves to the training
decoder, which names row, column and rule; so both have the same answer, and this one a quarter of the time.

Shape legend: B rows, F ids, N dense features.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.data.key_rows import KeyRows, mixed
from torchrec_xd.data.normalisation import filled
from torchrec_xd.data.rows import Floats, Integers, Jagged, Rows
from torchrec_xd.data.vocabularies import vocabularies_of
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema

_INTEGERS, _NUMBERS = b"0123456789-,[]", b"0123456789+-,[].e"
_NULL = b"null"


class NumberColumns:
    """The columns of one side of a request, where all of them are plain.

    Args:
        schema: of the side; ids outside their tables are left out, and keys that no vocabulary has are row 0.
        types: of the values of a request, by column.
    """

    def __init__(self, schema: Schema, types: Mapping[str, pa.DataType]) -> None:
        with_table = [feature for feature in schema.features if feature.has_table]
        self._ids = [feature for feature in with_table if feature.kind == "id"]
        self._sequences = [feature for feature in with_table if feature.kind == "sequence"]
        self._order = [feature.column for feature in with_table]
        self._dense = [feature for feature in schema.features if feature.kind == "dense"]
        self._rows_F = np.array([[feature.rows] for feature in self._ids], dtype=np.uint64).reshape(-1, 1)
        self._vocabularies = vocabularies_of(schema, schema.features)
        self._whole = [feature.column for feature in self._dense if types[feature.column] == pa.int64()]
        self.fits: bool = all(_is_plain(feature, types[feature.column]) for feature in schema.features)
        """Whether it can read this side at all."""

    def read(self, given: Mapping[str, Sequence[Any]], count: int, dropped: Counter[str]) -> Rows | None:
        """Rows; None where a value is odd. Columns of other lengths than `count` are odd.

        Args:
            given: column to its values.
            count: of rows.
            dropped: where ids outside their tables are counted, by column.
        """
        left_out: Counter[str] = Counter()
        try:
            ids = self._read_ids([given[f.column] for f in self._ids], count, left_out)
            for feature in self._sequences:
                vocabulary = self._vocabularies.get(feature.table_name)
                ids[feature.column] = _sequence(given[feature.column], feature, left_out, vocabulary)
            _has_nulls([given[column] for column in self._whole], _INTEGERS)
            dense_BN = self._read_dense([given[f.column] for f in self._dense], count)
        except (TypeError, ValueError, OverflowError, struct.error):
            return None
        dropped.update(left_out)
        return Rows(
            ids=tuple(ids[column] for column in self._order),
            dense_BN=dense_BN,
            vectors=(),
            label_BT=np.full((count, 0), np.nan, dtype=np.float32),
            weight_B=np.ones(count, dtype=np.float32),
            user_B=np.zeros(count, dtype=np.int64),
            extra_BK=np.zeros((count, 0), dtype=np.int64),
        )

    def _read_ids(self, columns: list[Sequence[Any]], count: int, dropped: Counter[str]) -> dict[str, Jagged]:
        if not columns:
            return {}
        nulls, whole = [False] * len(columns), columns
        if _has_nulls(columns, _INTEGERS):
            nulls = [None in values for values in columns]
            whole = [[value or 0 for value in own] if null else own for own, null in zip(columns, nulls, strict=True)]
        id_FB = integers(chain.from_iterable(whole), len(columns) * count).reshape(len(columns), count)
        if self._vocabularies:
            id_FB = id_FB.copy()
            for feature, id_B in zip(self._ids, id_FB, strict=True):
                if vocabulary := self._vocabularies.get(feature.table_name):
                    id_B[:] = vocabulary.rows(mixed(id_B.view(np.uint64)))
        outside_FB = id_FB.view(np.uint64) >= self._rows_F  # a negative id becomes a huge one
        if not any(nulls) and not outside_FB.any():
            return {feature.column: Jagged(id_B, None) for feature, id_B in zip(self._ids, id_FB, strict=True)}
        found = {}
        for feature, own, null, id_B, outside_B in zip(self._ids, columns, nulls, id_FB, outside_FB, strict=True):
            if outside_B.any():
                dropped[feature.column] += int(np.count_nonzero(outside_B))
            valid_B = ~outside_B
            if null:
                valid_B &= np.array([value is not None for value in own])
            whole_column = bool(valid_B.all())
            found[feature.column] = (
                Jagged(id_B, None) if whole_column else Jagged.of_lengths(id_B[valid_B], valid_B.astype(np.int64))
            )
        return found

    def _read_dense(self, columns: list[Sequence[Any]], count: int) -> Floats:
        number_BN = np.zeros((count, len(columns)), dtype=np.float32)
        if not columns:
            return number_BN
        _has_nulls(columns, _NUMBERS)
        value_NB = np.array(columns, dtype=np.float64)  # None becomes NaN, which JSON has no other word for
        null_NB = np.isnan(value_NB)
        with np.errstate(over="ignore"):
            for i, feature in enumerate(self._dense):
                number_BN[:, i] = filled(null_NB[i], np.where(null_NB[i], 0.0, value_NB[i]), feature)
        if not np.isfinite(number_BN).all():
            raise ValueError
        return number_BN


def _is_plain(feature: Feature, kind: pa.DataType) -> bool:
    kinds = {"id": [pa.int64()], "sequence": [pa.list_(pa.int64())], "dense": [pa.int64(), pa.float64()]}
    return kind in kinds.get(feature.kind, ()) and feature.hash in ("none", "drop") and not feature.events


def _sequence(values: Sequence[Any], feature: Feature, dropped: Counter[str], vocabulary: KeyRows | None) -> Jagged:
    """A column of lists: ids outside their table left out, then the last ones of each row."""
    lists = [[] if each is None else each for each in values]
    if any(type(each) is not list for each in lists):
        raise TypeError
    if _has_nulls(lists, _INTEGERS):
        raise TypeError
    lengths = np.array([len(each) for each in lists], dtype=np.int64)
    keys: Integers = integers(chain.from_iterable(lists), int(lengths.sum()))
    if vocabulary is not None:
        keys = vocabulary.rows(mixed(keys.view(np.uint64)))
    assert feature.rows is not None
    assert feature.length is not None
    outside = keys.view(np.uint64) >= feature.rows
    if outside.any():
        dropped[feature.column] += int(np.count_nonzero(outside))
        row = np.repeat(np.arange(len(lengths)), lengths)[~outside]
        keys, lengths = keys[~outside], np.bincount(row, minlength=len(lengths))
    behind = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(keys))  # 1 for the last id of a row
    kept = behind <= feature.length
    if not kept.all():
        keys, lengths = keys[kept], np.minimum(lengths, feature.length)
    return Jagged.of_lengths(keys, lengths)


def integers(values: chain[Any], count: int) -> NDArray[np.int64]:
    """`count` integers of 64 bits.

    Raises:
        struct.error: another number of values, or one that is no integer of 64 bits.
    """
    return np.frombuffer(struct.pack(f"={count}q", *values), dtype=np.int64)


def _has_nulls(columns: Sequence[Sequence[Any]], allowed: bytes) -> bool:
    """Check the types of all values at once, by how JSON writes them: a truth value or a text has other letters.

    Raises:
        TypeError: a value is neither null nor of the type.
    """
    rest = orjson.dumps(columns).translate(None, allowed)
    if rest and rest.replace(_NULL, b""):
        raise TypeError
    return bool(rest)
