"""What an export changed since another version: what is to be copied to where that version is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from torchrec_xd.data.key_rows import HASH, ROW, KeyRows, read_key_rows
from torchrec_xd.data.tensor_file import TensorFile
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import sha256
from torchrec_xd.serving.artifact import Artifact, ArtifactManifest
from torchrec_xd.serving.delta import (
    DELTA,
    GONE,
    HEADER,
    ROWS,
    TABLES,
    VALUES,
    VOCABULARIES,
    VOCABULARY_DELTA,
    apply_delta,
    apply_vocabulary_delta,
)

_CHUNK = 1 << 20
"""Rows that are compared at a time."""


def check_base(base: Artifact, manifest: ArtifactManifest) -> None:
    """Check that a version can be written as changes of another one.

    Raises:
        UserError: they differ in more than values and rows.
    """
    theirs, where = base.manifest, f"--since {base.version}"
    for what in ("model", "domain", "tables_dtype"):
        ours, other = getattr(manifest, what), getattr(theirs, what)
        if ours != other:
            raise UserError(f"{where}: that version's {what} is {other}, this one's {ours}; export without --since")
    for name in sorted({*manifest.tables, *theirs.tables}):
        ours, other = manifest.tables.get(name), theirs.tables.get(name)
        if ours is None or other is None or ours.dim != other.dim:
            raise UserError(f"{where}: table '{name}' is not the same in both versions; export without --since")
        if ours.rows < other.rows:
            raise UserError(
                f"{where}: table '{name}' has {ours.rows} rows, fewer than the {other.rows} of that version; export "
                "without --since"
            )


def write_changes(folder: Path, base: Artifact) -> tuple[dict[str, str], list[str]]:
    """Write what differs from another version next to a version's own files.

    Args:
        folder: of the version, whole.
        base: the other one, whole.

    Returns:
        Checksums of all files, and the names of those that the other version and these changes do not yield.
    """
    files = checksums(folder)
    same = {name for name, checksum in files.items() if base.manifest.files.get(name) == checksum}
    deltas = {DELTA: _table_changes(folder, base)}
    if VOCABULARIES in files and VOCABULARIES in base.manifest.files and VOCABULARIES not in same:
        deltas[VOCABULARY_DELTA] = _key_changes(folder, base)
    for name, arrays in deltas.items():
        save_file(arrays, folder / name)
        (folder / name).chmod((folder / TABLES).stat().st_mode)
        made, apply = (TABLES, apply_delta) if name == DELTA else (VOCABULARIES, apply_vocabulary_delta)
        check = folder / "check"
        apply(folder / name, base.folder / made, check)
        if sha256(check) != files[made]:
            raise RuntimeError(f"the changes of {made} do not yield the version that they were made of")
        check.unlink()
        same.add(made)
    files |= {name: sha256(folder / name) for name in deltas}
    return files, sorted(set(files) - same)


def _table_changes(folder: Path, base: Artifact) -> dict[str, NDArray[Any]]:
    before, after = TensorFile.open(base.folder / TABLES), TensorFile.open(folder / TABLES)
    found: dict[str, NDArray[Any]] = {HEADER: np.frombuffer(after.header, np.uint8)}
    for name, array in after.arrays.items():
        rows = _changed(array, before.arrays[name])
        found[ROWS + name] = rows.astype(np.int32 if len(array) < 2**31 else np.int64)
        found[VALUES + name] = array[rows]
    return found


def _key_changes(folder: Path, base: Artifact) -> dict[str, NDArray[Any]]:
    """Of each vocabulary the hashes that lost their row, and those that got one, with it."""
    path = folder / VOCABULARIES
    before, after = read_key_rows(base.folder / VOCABULARIES), read_key_rows(path)
    found: dict[str, NDArray[Any]] = {HEADER: np.frombuffer(TensorFile.open(path).header, np.uint8)}
    nothing = KeyRows.ascending(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
    for name, ours in after.items():
        theirs = before.get(name, nothing)
        at = np.searchsorted(theirs.hash_V, ours.hash_V)
        there = np.flatnonzero(at < len(theirs.hash_V))
        kept = there[(theirs.hash_V[at[there]] == ours.hash_V[there]) & (theirs.row_V[at[there]] == ours.row_V[there])]
        found[GONE + name] = np.delete(theirs.hash_V, at[kept])
        found[HASH + name] = np.delete(ours.hash_V, kept)
        found[ROW + name] = np.delete(ours.row_V, kept)
    return found


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _changed(after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.int64]:
    """Rows that differ in a bit, and all new ones."""
    found = []
    for start in range(0, len(before), _CHUNK):
        ours, theirs = (
            part[start : min(start + _CHUNK, len(before))].reshape(-1, part[0].size).view(np.uint8)
            for part in (after, before)
        )
        found.append(start + np.flatnonzero((ours != theirs).any(axis=1)))
    return np.concatenate([*found, np.arange(len(before), len(after))]).astype(np.int64)
