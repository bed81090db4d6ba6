"""The Parquet files of one domain and split: found on any file system, footers read once, row groups read on demand."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from pyarrow import fs

from torchrec_xd.data.shards import RowGroup
from torchrec_xd.errors import UserError

_OPEN_FILES = 32
_NAMES = 20
_ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""PyArrow's own; options in a location of theirs are for it, while fsspec would read them as part of the path."""
_TAIL = 65_536
"""Bytes read from the end of a file: most footers are shorter."""


@dataclass(frozen=True)
class FileStamp:
    """A file as it was when its footer was read; the same on every machine that has a copy of it."""

    name: str
    """Its path below the schema's root, or its whole path where it lies elsewhere."""
    size: int
    """Bytes."""
    rows: int
    footer: str
    """Hash of the footer: schema, offsets of all column chunks, statistics."""


class ParquetFiles:
    """Files of equal meaning, in the order of their names.

    Args:
        locations: files, folders (their `.parquet` files at any depth) or globs; local, or URIs (`s3://…`, `file://…`),
            all on one file system.
        root: what a relative location starts from; may be a URI too.
        check: called with each file's name and Arrow schema; raises UserError where columns are not as they should be.

    Raises:
        UserError: a location holds nothing, or lies on another file system, or a file is no readable Parquet.
    """

    def __init__(self, locations: Sequence[str], root: str, check: Callable[[str, pa.Schema], None]):
        self._filesystem, files = _find_all([_join(root, location) for location in locations])
        self._check = check
        self._base = _filesystem_of(root)[1].rstrip("/") + "/"
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._footer, files))
        self.stamps: tuple[FileStamp, ...] = tuple(stamp for stamp, _ in found)
        """Every file as it was found."""
        self.row_groups: tuple[RowGroup, ...] = tuple(group for _, groups in found for group in groups)
        """All row groups that hold rows, file by file."""

    def reader(self, columns: Sequence[str]) -> Callable[[RowGroup], pa.Table]:
        """A function that reads those `columns` of a row group which its file has; some files stay open.

        Raises:
            UserError: a row group is damaged.
        """
        opened = functools.lru_cache(_OPEN_FILES)(self._open)

        def read(row_group: RowGroup) -> pa.Table:
            try:
                return opened(row_group.file).read_row_group(row_group.index, columns=list(columns))
            except (OSError, pa.ArrowException) as error:
                raise _damaged(row_group.file, error, f"row group {row_group.index}") from error

        return read

    def _footer(self, file: str) -> tuple[FileStamp, list[RowGroup]]:
        try:
            with self._filesystem.open_input_file(file) as stream:
                size, tail = stream.size(), _tail(stream)
            parquet = pq.ParquetFile(pa.BufferReader(tail))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(file, error, "footer") from error
        self._check(file, parquet.schema_arrow)
        groups, first_row = [], 0
        for index in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(index).num_rows
            if rows:
                groups.append(RowGroup(file, index, first_row, rows))
            first_row += rows
        return FileStamp(file.removeprefix(self._base), size, first_row, _digest(tail)), groups

    def _open(self, file: str) -> pq.ParquetFile:
        try:
            remote = not isinstance(self._filesystem, fs.LocalFileSystem)
            return pq.ParquetFile(file, filesystem=self._filesystem, pre_buffer=remote)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(file, error, "footer") from error


def _tail(stream: pa.NativeFile) -> bytes:
    """The footer, its length and the closing magic number, as they stand at the end of a file."""
    size = stream.size()
    tail: bytes = stream.read_at(min(size, _TAIL), max(size - _TAIL, 0))
    length = min(int.from_bytes(tail[-8:-4], "little") + 8, size)
    return tail[-length:] if length <= len(tail) else stream.read_at(length, size - length)


def _digest(tail: bytes) -> str:
    return hashlib.sha256(tail).hexdigest()[:16]


def _damaged(file: str, error: Exception, part: str) -> UserError:
    return UserError(f"{file}: not a readable Parquet file ({part}: {error}); write it again or move it away")


def _join(root: str, location: str) -> str:
    if "://" in location or Path(location).is_absolute():
        return location
    return f"{root.rstrip('/')}/{location}" if "://" in root else str(Path(root, location))


def _filesystem_of(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it: local, one that PyArrow knows, else one that fsspec knows."""
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    rest, question, query = rest.partition("?")
    host, _, path = rest.partition("/")
    try:
        filesystem, base = fs.FileSystem.from_uri(f"{scheme}://{host}/{question}{query}")
        return filesystem, f"{base.rstrip('/')}/{path}"
    except (ValueError, NotImplementedError, ImportError) as error:  # unknown, not built in, a package is missing
        if query and isinstance(error, pa.ArrowInvalid) and scheme in _ARROW_SCHEMES:
            raise UserError(f"{location}: {error}; correct what follows the question mark") from error
        return _fsspec(scheme, location, error)
    except OSError as error:
        raise UserError(f"{location}: the file system cannot be reached: {error}") from error


def _fsspec(scheme: str, location: str, refusal: Exception) -> tuple[fs.FileSystem, str]:
    """What fsspec makes of a location that PyArrow has refused; if nothing, the error tells both reasons."""
    try:
        filesystem, path = url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{location}: neither PyArrow ({refusal}) nor fsspec ({error}) can open a file system '{scheme}'; "
            "install its package, or use a local path"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _find_all(locations: Sequence[str]) -> tuple[fs.FileSystem, list[str]]:
    """The files at all locations, in their order, and the one file system that they are on."""
    found = [_find(location) for location in locations]
    filesystem = found[0][0] if found else fs.LocalFileSystem()
    for location, (other, _) in zip(locations, found, strict=True):
        if not other.equals(filesystem):
            raise UserError(f"{location} is on another file system than {locations[0]}; a split's files lie on one")
    return filesystem, [file for _, files in found for file in files]


def _find(location: str) -> tuple[fs.FileSystem, list[str]]:
    """The file system and the files in it, sorted."""
    filesystem, path = _filesystem_of(location)
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        if files := _files_at(filesystem, path):
            return filesystem, files
        others = filesystem.get_file_info(fs.FileSelector(parent or "/", allow_not_found=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error}") from error
    names = sorted(info.base_name for info in others)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    there = ", ".join(names[:_NAMES]) + (", …" if len(names) > _NAMES else "")
    raise UserError(
        f"{path}: no Parquet file is there{hint}; name a file, a folder with .parquet files or a glob "
        f"(in '{parent or '/'}' there is: {there or 'nothing'})"
    )


def _files_at(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The file itself, the .parquet files below a folder, or what a glob matches; `_SUCCESS` and the like left out."""
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.File:
        return [path]
    parts = path.rstrip("/").split("/")
    globs = [i for i, part in enumerate(parts) if any(char in part for char in "*?[")]
    fixed = globs[0] if globs and kind != fs.FileType.Directory else len(parts)
    base, pattern = "/".join(parts[:fixed]), parts[fixed:]
    files = []
    for info in filesystem.get_file_info(fs.FileSelector(base or "/", allow_not_found=True, recursive=True)):
        below = info.path.split("/")[fixed:]
        wanted = _matches(below, pattern) or _matches(below, [*pattern, "**", "*.parquet"])
        if info.type == fs.FileType.File and wanted and not any(part.startswith(("_", ".")) for part in below):
            files.append(info.path)
    return sorted(files)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path matches a glob, folder by folder; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
