"""NumPy rows of several domains -> one Batch.

Shape legend: B rows, N dense features, L numbers of a vector, V of all vectors, T tasks, K extra columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.schema import Collection, Schema

Integers = NDArray[np.int64]
IdType = type[np.int32 | np.int64]
Floats = NDArray[np.float32]
Vectors = NDArray[np.float16] | NDArray[np.float32]
_NONE = np.zeros(0, dtype=np.int64)


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
        return Jagged(_NONE, np.broadcast_to(np.int64(0), rows + 1))

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
    lengths = np.concatenate([part.lengths for part in parts])
    starts = np.cumsum(lengths) - lengths
    lengths = lengths[order]
    places = spans(starts[order], lengths)
    weighted = any(part.weights is not None for part in parts)
    weights = np.take(np.concatenate([part.all_weights() for part in parts]), places) if weighted else None
    return Jagged.of_lengths(np.take(values, places), lengths, weights)


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


class Collator:
    """Rows, domain by domain -> Batch.

    Args:
        schema: order of domains and features.
        num_extra: number of extra columns.
    """

    def __init__(self, schema: Schema, num_extra: int):
        self.schema = schema
        collections = {table.name: table.collection for table in schema.tables()}
        features = [feature for feature in schema.features if feature.has_table]
        dense = [feature for feature in schema.features if feature.kind == "dense"]
        self._widths = [feature.width for feature in schema.features if feature.kind == "vector"]
        self._keys = [feature.column for feature in features]
        self._features: dict[Collection, list[int]] = {"bags": [], "weighted_bags": [], "sequences": []}
        for i, feature in enumerate(features):
            self._features[collections[feature.table_name]].append(i)
        self._empty = Rows(
            ids=tuple(Jagged(np.zeros(0, dtype=np.int64), None) for _ in features),
            dense_BN=np.zeros((0, len(dense)), dtype=np.float32),
            vectors=tuple(np.zeros((0, 0), dtype=np.float32) for _ in self._widths),
            label_BT=np.zeros((0, len(schema.tasks)), dtype=np.float32),
            weight_B=np.zeros(0, dtype=np.float32),
            user_B=np.zeros(0, dtype=np.int64),
            extra_BK=np.zeros((0, num_extra), dtype=np.int64),
        )

    def __call__(self, domains: Sequence[Sequence[Rows]], position: LoaderState) -> Batch:
        """The batch of these rows; each domain gives any number of parts."""
        counts = [sum(len(part) for part in parts) for parts in domains]
        rows = [part for parts in domains for part in parts] or [self._empty]
        return Batch(
            bags=self._jagged_tensor(rows, self._features["bags"]),
            weighted_bags=self._jagged_tensor(rows, self._features["weighted_bags"], weighted=True),
            sequences=self._jagged_tensor(rows, self._features["sequences"]),
            dense_BN=_joined([part.dense_BN for part in rows]),
            vector_BV=self._vectors(rows),
            label_BT=_joined([part.label_BT for part in rows]),
            weight_B=_joined([part.weight_B for part in rows]),
            user_B=_joined([part.user_B for part in rows]),
            extra_BK=_joined([part.extra_BK for part in rows]),
            offsets=(0, *np.cumsum(counts).tolist()),
            position=position,
        )

    def _vectors(self, rows: Sequence[Rows]) -> torch.Tensor:
        """All vectors side by side: the first time that they are copied as float32."""
        vector_BV = np.zeros((sum(len(part) for part in rows), sum(self._widths)), dtype=np.float32)
        first = 0
        for part in rows:
            own_BV = vector_BV[first : first + len(part)]
            at = 0
            for vector_BL, width in zip(part.vectors, self._widths, strict=True):
                own_BV[:, at : at + vector_BL.shape[1]] = vector_BL
                at += width
            first += len(part)
        return torch.from_numpy(vector_BV)

    def _jagged_tensor(
        self, rows: Sequence[Rows], features: Sequence[int], *, weighted: bool = False
    ) -> KeyedJaggedTensor:
        lengths_FB = np.ones((len(features), sum(len(part) for part in rows)), dtype=np.int32)
        values: list[NDArray[Any]] = [_NONE]
        for feature, lengths_B in zip(features, lengths_FB, strict=True):
            at = 0
            for part in rows:
                ids = part.ids[feature]
                values.append(ids.values)
                if ids.offsets is not None:
                    lengths_B[at : at + len(part)] = np.diff(ids.offsets)
                at += len(part)
        weights = [part.ids[feature].all_weights() for feature in features for part in rows] if weighted else []
        return KeyedJaggedTensor(
            keys=[self._keys[feature] for feature in features],
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            weights=_joined(weights) if weights else None,
            lengths=torch.from_numpy(lengths_FB.reshape(-1)),
            stride=lengths_FB.shape[1],
            # passed in, so that no lookup has to read them from a device
            length_per_key=[sum(len(part.ids[feature].values) for part in rows) for feature in features],
        )


def _joined(parts: Sequence[NDArray[Any]]) -> torch.Tensor:
    """The parts one after the other, in memory of their own."""
    return torch.from_numpy(np.concatenate(parts))
