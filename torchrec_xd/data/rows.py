"""NumPy rows of one domain: ids, numbers, vectors and labels, cut and gathered without a copy that can be a view.

Shape legend: B rows, N dense features, L numbers of a vector, T tasks, K extra columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Integers = NDArray[np.int64]
IdType = type[np.int32 | np.int64]
Floats = NDArray[np.float32]
Vectors = NDArray[np.float16] | NDArray[np.float32]
NO_IDS = np.zeros(0, dtype=np.int64)


def spans(starts: Integers, lengths: Integers) -> Integers:
    """The indices start, start + 1, … of every span, one after the other."""
    before = np.cumsum(lengths) - lengths
    indices = np.repeat(starts - before, lengths)
    indices += np.arange(len(indices))
    return indices


@dataclass(frozen=True)
class Jagged:
    """Ids of one feature, row after row."""

    values: Integers | NDArray[np.int32]
    offsets: Integers | None
    """Ids of row i are `values[offsets[i]:offsets[i + 1]]`; None where every row has exactly one."""
    weights: Floats | None = None
    """Of the ids, as many; None where every one is 1."""

    @staticmethod
    def empty(rows: int) -> Jagged:
        """Rows without ids."""
        return Jagged(NO_IDS, np.broadcast_to(np.int64(0), rows + 1))

    @staticmethod
    def of_lengths(values: Integers | NDArray[np.int32], lengths: Integers, weights: Floats | None = None) -> Jagged:
        """From the number of ids in each row [B]."""
        return Jagged(values, np.concatenate([[0], np.cumsum(lengths)]), weights)

    @property
    def lengths(self) -> Integers:
        """Ids per row [B]."""
        return np.ones(len(self.values), dtype=np.int64) if self.offsets is None else np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> Jagged:
        """Rows [start, stop), as a view."""
        if self.offsets is None:
            return Jagged(self.values[start:stop], None)
        offsets = self.offsets[start : stop + 1]
        weights = None if self.weights is None else self.weights[offsets[0] : offsets[-1]]
        return Jagged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0], weights)

    def all_weights(self) -> Floats:
        """Of every id, 1 included."""
        return np.ones(len(self.values), dtype=np.float32) if self.weights is None else self.weights


def _gather(parts: Sequence[NDArray[Any]], order: Integers) -> NDArray[Any]:
    return np.take(np.concatenate(parts), order, axis=0)


def _gather_jagged(parts: Sequence[Jagged], order: Integers, dtype: IdType) -> Jagged:
    values = np.concatenate([part.values for part in parts], dtype=dtype)
    if not len(values):
        return Jagged.empty(len(order))
    if all(part.offsets is None for part in parts):
        return Jagged(np.take(values, order), None)  # np.take: values[order] needs twice the time
    ends = np.cumsum(np.concatenate([part.lengths for part in parts]))
    offsets = np.concatenate([[0], ends])
    taken, taken_offsets = _take_spans(values, offsets, order)
    weighted = any(part.weights is not None for part in parts)
    weights = np.concatenate([part.all_weights() for part in parts]) if weighted else None
    return Jagged(taken, taken_offsets, None if weights is None else _take_spans(weights, offsets, order)[0])


def _take_spans(values: NDArray[Any], offsets: Integers, order: Integers) -> tuple[NDArray[Any], Integers]:
    """Spans `values[offsets[i]:offsets[i + 1]]` for every i of `order`, one after the other, and their offsets.

    By Arrow, as strings of bytes: an index for every value, as NumPy needs, takes three times as long.
    """
    width = values.itemsize
    spans_of_bytes = [None, pa.py_buffer(offsets * width), pa.py_buffer(values)]
    taken = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, spans_of_bytes).take(pa.array(order))
    _, ends, data = taken.buffers()
    taken_offsets = np.frombuffer(ends, dtype=np.int64, count=len(order) + 1) // width
    return np.frombuffer(data or b"", dtype=values.dtype, count=int(taken_offsets[-1])), taken_offsets


@dataclass(frozen=True)
class Rows:
    """Some rows of one domain; ids hold every feature with a table, in schema order."""

    ids: tuple[Jagged, ...]
    dense_BN: Floats
    vectors: tuple[Vectors, ...]
    """Every vector feature `[B, L]`, as narrow as in the file; `[B, 0]` where the domain lacks it."""
    label_BT: Floats
    weight_B: Floats
    user_B: Integers
    extra_BK: Integers

    def __len__(self) -> int:
        return len(self.user_B)

    @staticmethod
    def gather(parts: Sequence[Rows], order: Integers, id_types: Sequence[IdType]) -> Rows:
        """Row `order[i]` of all parts together becomes row i; column by column, so that a column stays in the cache.

        Args:
            parts: of one domain.
            order: of their rows, one part after the other.
            id_types: for each feature of `ids` a type that holds its ids; narrow ones are moved in half the time.
        """
        features = zip(*(part.ids for part in parts), strict=True)
        return Rows(
            ids=tuple(_gather_jagged(own, order, kind) for own, kind in zip(features, id_types, strict=True)),
            dense_BN=_gather([part.dense_BN for part in parts], order),
            vectors=tuple(_gather(own, order) for own in zip(*(part.vectors for part in parts), strict=True)),
            label_BT=_gather([part.label_BT for part in parts], order),
            weight_B=_gather([part.weight_B for part in parts], order),
            user_B=_gather([part.user_B for part in parts], order),
            extra_BK=_gather([part.extra_BK for part in parts], order),
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows [start, stop), as a view."""
        return Rows(
            ids=tuple(jagged.slice(start, stop) for jagged in self.ids),
            dense_BN=self.dense_BN[start:stop],
            vectors=tuple(vector_BL[start:stop] for vector_BL in self.vectors),
            label_BT=self.label_BT[start:stop],
            weight_B=self.weight_B[start:stop],
            user_B=self.user_B[start:stop],
            extra_BK=self.extra_BK[start:stop],
        )
