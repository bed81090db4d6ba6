"""A version that holds only what changed since another one: what it lacks is made from that one, where it lies.

The file of tables that this yields is that of a full export, byte for byte; the manifest has its checksum.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torchrec_xd.errors import UserError
from torchrec_xd.serving.tensor_file import TensorFile, tensor_entries, tensor_view

TABLES = "tables.safetensors"
DELTA = "tables.delta.safetensors"
"""The header of the tables' file as bytes, and of each array the rows that differ, with their values."""
HEADER, ROWS, VALUES = "header", "rows:", "values:"


def complete(folder: Path, base: Path, files: Mapping[str, str], base_files: Mapping[str, str]) -> None:
    """Make the files that a version lacks. Several processes may do it at once: each file appears whole.

    Args:
        folder: of the version.
        base: of the version that it is based on, with all of its files.
        files: what the version should have, name to SHA-256.
        base_files: what the other one has.

    Raises:
        UserError: the folder cannot be written, or a file is neither here nor there.
    """
    for name, checksum in files.items():
        path = folder / name
        if path.exists():
            continue
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == TABLES and (folder / DELTA).is_file():
                apply_delta(folder / DELTA, base / TABLES, partial)
            elif base_files.get(name) == checksum and (base / name).is_file():
                shutil.copyfile(base / name, partial)
            else:
                continue  # whoever checks the files says so
            partial.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be made from {base} ({error.strerror or error}); a version of changes needs a folder "
                "that can be written, or export without --since"
            ) from None
        finally:
            partial.unlink(missing_ok=True)


def apply_delta(delta: Path, base: Path, out: Path) -> None:
    """Write a file of tables: another one's, with the rows that a delta has.

    Raises:
        UserError: one of the files is damaged, or they do not fit.
        OSError: it cannot be written.
    """
    changes, before = TensorFile.open(delta), TensorFile.open(base)
    try:
        header = changes.arrays[HEADER].tobytes()
        entries = tensor_entries(header)
        size = len(header) + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        with out.open("wb+") as stream:
            stream.write(header)
            stream.truncate(size)
            stream.flush()
            with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_WRITE) as pages:
                for name, entry in entries.items():
                    array, old = tensor_view(pages, len(header), entry), before.arrays[name]
                    array[: len(old)] = old
                    array[changes.arrays[ROWS + name]] = changes.arrays[VALUES + name]
                    del array  # a view keeps the pages from being closed
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{delta}: does not fit {base} ({error}); export again, without --since") from None
