"""Keys to rows of embedding tables, by hashes of 64 bits, in one vectorised step.

A file of them (safetensors, mapped and not read) has of each table the hashes, their rows, and where slots begin. It
holds no keys, and all processes that look up in it share its pages.

Shape legend: N keys that are looked up, V keys of the vocabulary, S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.data.column_types import holds_strings
from torchrec_xd.data.rows import Integers
from torchrec_xd.data.strings import string_hashes
from torchrec_xd.data.tensor_file import TensorFile
from torchrec_xd.errors import UserError

Hashes = NDArray[np.uint64]
CHUNK = 1 << 16
"""Keys that are looked up at a time, so that what is computed of them stays in the cache."""
HASH, ROW, BEGIN = "hash:", "row:", "begin:"
"""What the arrays of a table are called in a file, in front of its name."""


@dataclass(frozen=True)
class KeyRows:
    """Keys to rows, by hash: slots of the upper bits, each with the few hashes that begin with them.

    Hashes of integers are a bijection of 64 bits. A text that the vocabulary lacks shares the hash of one that it has
    with a probability of about V / 2^64.
    """

    hash_V: Hashes
    """Ascending."""
    row_V: NDArray[np.int32] | NDArray[np.int64]
    begin_S: NDArray[np.int32] | NDArray[np.int64]
    """Where the hashes of each slot begin, and one more."""
    shift: int
    """Bits of a hash below those that number its slot."""

    @staticmethod
    def of(hash_V: Hashes, row_V: Integers) -> KeyRows:
        """From hashes and rows in any order.

        Raises:
            ValueError: two keys share a hash.
        """
        order = np.argsort(hash_V)
        return KeyRows.ascending(hash_V[order], row_V[order])

    @staticmethod
    def ascending(hash_V: Hashes, row_V: Integers) -> KeyRows:
        """From ascending hashes and their rows.

        Raises:
            ValueError: two keys share a hash.
        """
        if (hash_V[1:] == hash_V[:-1]).any():
            raise ValueError("two keys share a hash of 64 bits")
        bits = max(len(hash_V).bit_length(), 1)
        shift = 64 - bits
        small = np.int32 if len(hash_V) < 2**31 - 1 and (not len(row_V) or row_V.max() < 2**31) else np.int64
        counts = np.bincount((hash_V >> np.uint64(shift)).view(np.int64), minlength=1 << bits)
        begin_S = np.concatenate([[0], np.cumsum(counts)]).astype(small)
        return KeyRows(hash_V, row_V.astype(small), begin_S, shift)

    def rows_of(self, keys: pa.Array) -> Integers:
        """The row of every key; texts or integers, without nulls. 0 for those without a row.

        Raises:
            UserError: an integer does not fit into a signed 64-bit integer.
        """
        if holds_strings(keys.type):
            indices, hashes = string_hashes(keys)
            return self.rows(hashes)[indices]
        try:
            return self.rows(hashes_of(keys))
        except pa.ArrowInvalid as error:
            raise UserError(f"keys of a vocabulary are texts, or signed 64-bit integers: {error}") from None

    def rows(self, hash_N: Hashes) -> Integers:
        """The row of every hash; 0 where it is not there."""
        found = np.zeros(len(hash_N), dtype=np.int64)
        for at in range(0, len(hash_N) if len(self.hash_V) else 0, CHUNK):
            self._look_up(hash_N[at : at + CHUNK], found[at : at + CHUNK])
        return found

    def _look_up(self, hash_N: Hashes, found: Integers) -> None:
        slot_N = (hash_N >> np.uint64(self.shift)).view(np.int64)
        place_N, end_N = self.begin_S.take(slot_N), self.begin_S.take(slot_N + 1)
        left = np.flatnonzero(place_N < end_N)
        place_N, end_N, hash_N = place_N[left], end_N[left], hash_N[left]
        while len(left):  # as often as the fullest slot has hashes
            same = self.hash_V.take(place_N) == hash_N
            found[left[same]] = self.row_V.take(place_N[same])
            place_N = place_N + 1
            more = np.flatnonzero(~same & (place_N < end_N))
            left, place_N, end_N, hash_N = left[more], place_N[more], end_N[more], hash_N[more]


def hashes_of(keys: pa.Array) -> Hashes:
    """The hashes of texts or integers without nulls.

    Raises:
        pyarrow.ArrowInvalid: an integer does not fit into a signed 64-bit integer.
    """
    if holds_strings(keys.type):
        indices, hashes = string_hashes(keys)
        return hashes[indices]
    if pa.types.is_dictionary(keys.type):
        keys = keys.dictionary_decode()
    return mixed(keys.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64))


def mixed(numbers: Hashes) -> Hashes:
    """Another number of 64 bits for each, near ones far apart: a bijection (https://prng.di.unimi.it/splitmix64.c)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Hashes = mixed ^ (mixed >> np.uint64(31))
    return found


def arrays_of(tables: Mapping[str, KeyRows]) -> dict[str, NDArray[np.generic]]:
    """What a file of them holds, by name."""
    found: dict[str, NDArray[np.generic]] = {}
    for name, rows in tables.items():
        found |= {HASH + name: rows.hash_V, ROW + name: rows.row_V, BEGIN + name: rows.begin_S}
    return found


def read_key_rows(path: Path) -> dict[str, KeyRows]:
    """A file of them, by table.

    Raises:
        UserError: it is damaged.
    """
    arrays, found = TensorFile.open(path).arrays, {}
    for name in arrays:
        if name.startswith(HASH):
            table = name.removeprefix(HASH)
            try:
                hash_V, row_V, begin_S = (arrays[part + table] for part in (HASH, ROW, BEGIN))
                bits = (len(begin_S) - 1).bit_length() - 1
                if len(hash_V) != len(row_V) or len(begin_S) != (1 << bits) + 1 or begin_S[-1] != len(hash_V):
                    raise ValueError("sizes that do not fit")
            except (KeyError, ValueError, IndexError) as error:
                raise UserError(f"{path}: not a readable vocabulary of '{table}' ({error}); export again") from None
            found[table] = KeyRows(hash_V, row_V, begin_S, 64 - bits)
    return found
