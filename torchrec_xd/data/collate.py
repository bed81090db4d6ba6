"""NumPy rows of several domains -> one Batch.

Shape legend: B rows, N dense features, L numbers of a vector, V of all vectors, T tasks, K extra columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.rows import NO_IDS, Jagged, Rows
from torchrec_xd.schema import Collection, Schema


class Collator:
    """Rows, domain by domain -> Batch.

    Args:
        schema: order of domains and features.
        num_extra: number of extra columns.
    """

    def __init__(self, schema: Schema, num_extra: int):
        self.schema = schema
        self.weight_scale: Sequence[float] = [1.0] * len(schema.domains)
        """By domain: what row weights are multiplied with."""
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
            weight_B=self._weights(domains),
            user_B=_joined([part.user_B for part in rows]),
            extra_BK=_joined([part.extra_BK for part in rows]),
            offsets=(0, *np.cumsum(counts).tolist()),
            position=position,
        )

    def _weights(self, domains: Sequence[Sequence[Rows]]) -> torch.Tensor:
        parts = [
            part.weight_B if scale == 1 else part.weight_B * np.float32(scale)
            for scale, own in zip(self.weight_scale, domains, strict=True)
            for part in own
        ]
        return _joined(parts or [self._empty.weight_B])

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
        values: list[NDArray[Any]] = [NO_IDS]
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
