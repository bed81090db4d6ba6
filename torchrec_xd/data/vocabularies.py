"""Vocabularies that live with a run: which raw key has which row of an embedding table.

A folder of vocabularies holds `vocabularies.json` and, for each table, a Parquet file of `key`, `row` (null: not
admitted yet), `count`, `first_seen` and `last_seen`, in the order of the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from torchrec_xd.data.column_types import holds_strings
from torchrec_xd.data.key_rows import KeyRows, hashes_of, read_key_rows
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings

MANIFEST = "vocabularies.json"


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
    if not living:
        return {}
    place, names = schema.vocabularies, ", ".join(name.removeprefix("t_") for name in living)
    if place is None:
        raise UserError(f"a run makes the vocabularies of its tables ({names}): train one, and name its folder")
    if not place.is_file():
        return {name: key_rows(place, name) for name in living}
    found = read_key_rows(place)
    if lost := set(living) - set(found):
        raise UserError(f"{place}: has no vocabulary of {', '.join(sorted(lost))}, only {', '.join(found)}")
    return {name: found[name] for name in living}


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
