"""A version that was copied as changes since another one: what it lacks is made from that one, where it lies.

The files of tables and vocabularies that this yields are those of a full export, byte for byte; the manifest has their
checksums.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.data.key_rows import HASH, ROW, KeyRows, arrays_of, read_key_rows
from torchrec_xd.data.tensor_file import TensorFile, tensor_entries, tensor_view
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import sha256

TABLES = "tables.safetensors"
DELTA = "tables.delta.safetensors"
"""The header of the tables' file as bytes, and of each array the rows that differ, with their values."""
VOCABULARIES = "vocabularies.safetensors"
VOCABULARY_DELTA = "vocabularies.delta.safetensors"
"""The header of the vocabularies' file, and of each table the hashes of keys that lost their row, and of those that got
one, with it."""
HEADER, ROWS, VALUES, GONE = "header", "rows:", "values:", "gone:"


def complete(folder: Path, base: Path, files: Mapping[str, str], base_files: Mapping[str, str]) -> None:
    """Make the files that a version lacks. Several processes may do it at once: each file appears whole.

    Args:
        folder: of the version.
        base: of the version that it is based on, with all of its files.
        files: what the version should have, name to SHA-256.
        base_files: what the other one has.

    Raises:
        UserError: the folder cannot be written, or what is there does not yield a file with its checksum.
    """
    for name, checksum in files.items():
        path = folder / name
        if path.exists():
            continue
        partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in _DELTAS and (folder / _DELTAS[name][0]).is_file():
                delta, apply = _DELTAS[name]
                apply(folder / delta, base / name, partial)
            elif base_files.get(name) == checksum and (base / name).is_file():
                shutil.copyfile(base / name, partial)
            else:
                continue  # whoever checks the files says so
            if sha256(partial) != checksum:  # a wrong file in its place would never be made again
                raise UserError(
                    f"{path}: cannot be made from {base}: a file of one of the two versions was cut short or changed "
                    "(the checksum differs); copy both again"
                )
            partial.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be made from {base} ({error.strerror or error}); a version of changes needs a folder "
                "that can be written, or copy all of its files"
            ) from None
        finally:
            with suppress(OSError):  # a read-only file system refuses even to remove what is not there
                partial.unlink()


def apply_delta(delta: Path, base: Path, out: Path) -> None:
    """Write a file of tables: another one's, with the rows that a delta has.

    Raises:
        UserError: one of the files is damaged, or they do not fit.
        OSError: it cannot be written.
    """
    changes, before = TensorFile.open(delta), TensorFile.open(base)
    with _written(delta, base, out, changes) as arrays:
        for name, array in arrays.items():
            old = before.arrays[name]
            array[: len(old)] = old
            array[changes.arrays[ROWS + name]] = changes.arrays[VALUES + name]


def apply_vocabulary_delta(delta: Path, base: Path, out: Path) -> None:
    """Write a file of vocabularies: another one's, with the keys that a delta has.

    Raises:
        UserError: one of the files is damaged, or they do not fit.
        OSError: it cannot be written.
    """
    changes, before = TensorFile.open(delta), read_key_rows(base)
    with _written(delta, base, out, changes) as arrays:
        tables = [name.removeprefix(GONE) for name in changes.arrays if name.startswith(GONE)]
        after = {name: _after(before.get(name), changes, name) for name in tables}
        for name, array in arrays_of(after).items():
            arrays[name][:] = array


def _after(before: KeyRows | None, changes: TensorFile, table: str) -> KeyRows:
    """A vocabulary without the keys that went, with those that came."""
    gone, hash_V, row_V = (changes.arrays[part + table] for part in (GONE, HASH, ROW))
    if before is None:
        return KeyRows.ascending(hash_V, row_V)
    at = np.searchsorted(before.hash_V, gone)
    if not (at < len(before.hash_V)).all() or not np.array_equal(before.hash_V[at], gone):
        raise ValueError(f"keys of '{table}' that are to go are not there")
    kept_V, kept_row_V = np.delete(before.hash_V, at), np.delete(before.row_V, at)
    at = np.searchsorted(kept_V, hash_V)
    rows = np.insert(kept_row_V.astype(np.int64, copy=False), at, row_V)
    return KeyRows.ascending(np.insert(kept_V, at, hash_V), rows)


@contextmanager
def _written(delta: Path, base: Path, out: Path, changes: TensorFile) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of a new file, to be filled, by the header that a delta holds."""
    try:
        header = changes.arrays[HEADER].tobytes()
        entries = tensor_entries(header)
        size = len(header) + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        with out.open("wb+") as stream:
            stream.write(header)
            stream.flush()
            os.posix_fallocate(stream.fileno(), 0, size)  # what is mapped must not find the disk full
            pages = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_WRITE)
        yield {name: tensor_view(pages, len(header), entry) for name, entry in entries.items()}
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{delta}: does not fit {base} ({error}); export again, without --since") from None


_DELTAS: dict[str, tuple[str, Callable[[Path, Path, Path], None]]] = {
    TABLES: (DELTA, apply_delta),
    VOCABULARIES: (VOCABULARY_DELTA, apply_vocabulary_delta),
}
"""File to the one that holds its changes, and what makes it of another version's."""
