"""Vocabularies for look-ups: sorted keys and their rows, without a copy of the values.

A text's key is its XXH64, so that one binary search serves texts and integers. A text that the vocabulary lacks shares
the key of one that it has with a probability of about rows / 2^64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchrec_xd.data.rows import Integers
from torchrec_xd.data.strings import string_hashes
from torchrec_xd.errors import UserError

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Vocabulary:
    """Values that have a row of an embedding table; row 0 is for all others."""

    keys: Keys
    """Ascending."""
    row_of_key: NDArray[np.int32]

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Read a file of encoders: `value` and `row`.

        Raises:
            UserError: two texts share a key, which is as likely as rows^2 / 2^65.
        """
        table = pq.ParquetFile(path, memory_map=True).read(["value", "row"])
        keys = keys_of(table["value"].combine_chunks())
        order = np.argsort(keys)
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any():
            raise UserError(f"{path}: two values share a hash of 64 bits; take one of them out of the training data")
        return Vocabulary(keys, table["row"].to_numpy().astype(np.int32)[order])

    def rows(self, keys: Keys) -> Integers:
        """The row of every key; 0 for those that it lacks."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found: Integers = np.where(self.keys[at] == keys, self.row_of_key[at], 0).astype(np.int64)
        return found

    def values(self, path: Path, rows: Integers) -> list[object]:
        """The values of rows, from the file that it was loaded from; None for row 0."""
        table = pq.ParquetFile(path, memory_map=True).read(["value", "row"])
        place_of_row = np.zeros(int(self.row_of_key.max()) + 1, dtype=np.int64)
        place_of_row[table["row"].to_numpy()] = np.arange(len(table))
        found: list[object] = table["value"].take(place_of_row[rows]).to_pylist()
        return [value if row else None for value, row in zip(found, rows, strict=True)]


def keys_of(values: pa.Array) -> Keys:
    """The keys of texts or integers without nulls."""
    if pa.types.is_integer(values.type):
        keys: Keys = values.cast(pa.int64()).to_numpy().view(np.uint64)
        return keys
    indices, hashes = string_hashes(values)
    return hashes[indices]
