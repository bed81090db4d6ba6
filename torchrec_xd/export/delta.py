"""What an export changed since another version, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import sha256
from torchrec_xd.serving.artifact import Artifact, ArtifactManifest
from torchrec_xd.serving.delta import DELTA, HEADER, ROWS, TABLES, VALUES, apply_delta
from torchrec_xd.serving.tensor_file import TensorFile

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


def only_changes(folder: Path, base: Artifact) -> dict[str, str]:
    """Leave of a version's files what differs from another one's.

    Args:
        folder: of the version, whole.
        base: the other one, whole.

    Returns:
        Checksums of what the version is to have when it is applied, and of its changes.
    """
    files = checksums(folder)
    tables, before = folder / TABLES, TensorFile.open(base.folder / TABLES)
    after = TensorFile.open(tables)
    written: dict[str, NDArray[Any]] = {HEADER: np.frombuffer(after.header, np.uint8)}
    for name, array in after.arrays.items():
        rows = _changed(array, before.arrays[name])
        written[ROWS + name] = rows.astype(np.int32 if len(array) < 2**31 else np.int64)
        written[VALUES + name] = array[rows]
    save_file(written, folder / DELTA)
    (folder / DELTA).chmod(tables.stat().st_mode)
    check = folder / "check"
    apply_delta(folder / DELTA, base.folder / TABLES, check)
    assert sha256(check) == files[TABLES], "a delta that does not yield its version"
    check.unlink()
    same = [name for name, checksum in files.items() if base.manifest.files.get(name) == checksum]
    for name in {*same, TABLES}:
        (folder / name).unlink()
    return {**files, DELTA: sha256(folder / DELTA)}


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
