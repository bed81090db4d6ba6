"""Vocabularies that live with a run: raw keys to rows of embedding tables, in one vectorised step.

A folder of vocabularies holds `vocabularies.json` and, for each table, a Parquet file of `key`, `row` (null: not
admitted yet), `count`, `first_seen` and `last_seen`, in the order of the keys.

Shape legend: N keys that are looked up, V keys of the vocabulary, S slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from torchrec_xd.data.column_types import holds_strings
from torchrec_xd.data.rows import Integers
from torchrec_xd.data.strings import string_hashes
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings

MANIFEST = "vocabularies.json"
Hashes = NDArray[np.uint64]
CHUNK = 1 << 16
"""Keys that are looked up at a time, so that what is computed of them stays in the cache."""


class VocabularyFile(Settings):
    """One table's vocabulary."""

    file: str
    """Below the folder of the vocabularies."""
    sha256: str
    """Of the file."""
    keys: Literal["integers", "strings"]
    """What the keys are."""
    rows: int
    """Rows of the embedding table; row 0 is for all keys without a row of their own."""


class Vocabularies(Settings):
    """All vocabularies of a run, `vocabularies.json`."""

    version: Literal[1] = 1
    """Of this file's layout."""
    now: int
    """The run's day, in days since 1970, or its place in the chain of runs that go on from one another, from 0."""
    dated: bool
    """Whether `now` is a day."""
    tables: dict[str, VocabularyFile]
    """Name of the table to its vocabulary."""


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
        hash_V = hash_V[order]
        if (hash_V[1:] == hash_V[:-1]).any():
            raise ValueError("two keys share a hash of 64 bits")
        bits = max(len(hash_V).bit_length(), 1)
        shift = 64 - bits
        small = np.int32 if len(hash_V) < 2**31 - 1 and (not len(row_V) or row_V.max() < 2**31) else np.int64
        counts = np.bincount((hash_V >> np.uint64(shift)).view(np.int64), minlength=1 << bits)
        begin_S = np.concatenate([[0], np.cumsum(counts)]).astype(small)
        return KeyRows(hash_V, row_V[order].astype(small), begin_S, shift)

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


def read_vocabularies(folder: Path) -> Vocabularies:
    """The description of a run's vocabularies.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return Vocabularies.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder} holds no vocabularies ({reason}); put them back, or train anew") from None


def digest(folder: Path) -> str:
    """What tells the vocabularies of a run from others: of the description, which has the SHA-256 of every file."""
    read_vocabularies(folder)
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]


def read_table(folder: Path, table: str, columns: list[str] | None = None) -> pa.Table:
    """One vocabulary, or some columns of it.

    Raises:
        UserError: there is none, or the file was changed since it was written.
    """
    known = read_vocabularies(folder).tables
    if table not in known:
        raise UserError(f"{folder}: has no vocabulary of table '{table.removeprefix('t_')}', only {', '.join(known)}")
    path = folder / known[table].file
    if path.parent != folder or not path.is_file() or _sha256(path) != known[table].sha256:
        raise UserError(f"{path} is missing, or was changed since it was written; put it back, or train anew")
    return pq.read_table(path, columns=columns)


def key_rows(folder: Path, table: str) -> KeyRows:
    """What maps the keys of a table; kept for further callers.

    Raises:
        UserError: as `read_table`, or two texts share a hash, which is as likely as V^2 / 2^65.
    """
    return _key_rows(folder, table, digest(folder))


@lru_cache(maxsize=16)
def _key_rows(folder: Path, table: str, _: str) -> KeyRows:
    found = read_table(folder, table, ["key", "row"])
    found = found.filter(found["row"].is_valid())
    try:
        return KeyRows.of(hashes_of(_whole(found["key"])), found["row"].to_numpy().astype(np.int64))
    except ValueError as error:
        raise UserError(f"{folder}, table '{table.removeprefix('t_')}': {error}; rename one in the data") from None


def vocabularies_of(schema: Schema, features: Iterable[Feature]) -> dict[str, KeyRows]:
    """What gives the raw keys of some features their rows, by table.

    Raises:
        UserError: no run has made them yet; or as `key_rows`.
    """
    living = list(dict.fromkeys(feature.table_name for feature in features if feature.vocabulary is not None))
    if living and schema.vocabularies is None:
        names = ", ".join(name.removeprefix("t_") for name in living)
        raise UserError(f"a run makes the vocabularies of its tables ({names}): train one, and name its folder")
    return {name: key_rows(schema.vocabularies, name) for name in living if schema.vocabularies is not None}


def write_table(folder: Path, table: str, content: pa.Table, rows: int) -> VocabularyFile:
    """Write one vocabulary into a folder that no one reads yet."""
    name = hashlib.sha256(table.encode()).hexdigest()[:8] + ".parquet" if "/" in table else f"{table}.parquet"
    pq.write_table(content, folder / name, compression="zstd")
    kind: Literal["integers", "strings"] = "strings" if holds_strings(content["key"].type) else "integers"
    return VocabularyFile(file=name, sha256=_sha256(folder / name), keys=kind, rows=rows)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        found = hashlib.sha256()
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
