"""The Parquet files of one domain and split: footers read once, row groups read on demand, changes noticed."""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from torchrec_xd.data.filesystems import filesystem_of
from torchrec_xd.data.limits import Limits, Range
from torchrec_xd.data.locations import find_files
from torchrec_xd.data.outages import Patience
from torchrec_xd.data.shards import RowGroup
from torchrec_xd.data.statistics import Statistics, united
from torchrec_xd.errors import UserError

T = TypeVar("T")
_OPEN_FILES = 32
_TOGETHER = 64
"""Footers of local files that a thread reads one after the other, at most: to hand over each one costs as much as to
read it from the page cache."""
_TAIL = 65_536
"""Bytes read from the end of a file: most footers are shorter."""
_MEASURED = 16
"""Row groups that a mean is taken from: some 16 million rows where they are of the usual size."""
_READ_ERRORS = (OSError, ValueError, LookupError, pa.ArrowException)
"""What PyArrow and file systems raise over bytes that are not as they should be."""


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
    values: int = 0
    """CRC-32 of the bytes of some columns, of local files: their footers need not change when values do."""


class ParquetFiles:
    """Files of equal meaning, in the order of their names.

    Args:
        locations: files, folders (their `.parquet` files at any depth) or globs; local, or URIs (`s3://…`, `file://…`),
            all on one file system; tables of a lake at a version (`delta://PATH?version=N`, `iceberg://…`).
        root: what a relative location starts from; may be a URI too.
        check: called with every Arrow schema that occurs, after the name of the first file that has it; raises
            UserError where columns are not as they should be.
        limits: what the statistics of local files are compared with.
        patience: how long a store that does not answer is asked again.

    Raises:
        UserError: a location holds nothing, or lies on another file system, or a file is no readable Parquet.
        OutageError: the store does not answer.
    """

    def __init__(
        self,
        locations: Sequence[str],
        root: str,
        check: Callable[[str, pa.Schema], None],
        limits: Sequence[Limits] = (),
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ):
        self._filesystem, files = find_files(locations, root, patience)
        self._patience = patience
        self._base = patience(functools.partial(filesystem_of, root), root)[1].rstrip("/") + "/"
        self._local = isinstance(self._filesystem, fs.LocalFileSystem)
        threads = min(32, (os.cpu_count() or 1) + 4)
        with ThreadPoolExecutor(threads) as pool:
            step = min(_TOGETHER, -(-len(files) // threads) or 1) if self._local else 1
            parts = [files[i : i + step] for i in range(0, len(files), step)]
            found = list(chain.from_iterable(pool.map(lambda part: [self._footer(file) for file in part], parts)))
        self._found = dict(zip(files, found, strict=True))
        self.schemas: dict[pa.Schema, str] = {}
        """Every Arrow schema that occurs, and the first file with it."""
        holding: dict[pa.Schema, list[str]] = {}
        for file, footer in self._found.items():
            self.schemas.setdefault(footer.schema, file)
            if footer.row_groups:
                holding.setdefault(footer.schema, []).append(file)
        for schema, file in self.schemas.items():
            check(file, schema)
        self.row_groups: tuple[RowGroup, ...] = tuple(group for footer in found for group in footer.row_groups)
        """All row groups that hold rows, file by file."""
        known = Statistics(limits if self._local else ()).look(holding)
        doubtful = frozenset[tuple[str, int]]().union(*(each.doubtful for each in known.values()))
        self.doubtful: tuple[RowGroup, ...] = tuple(
            group for group in self.row_groups if (group.file, group.index) in doubtful
        )
        """Those whose statistics lie outside the limits."""
        self.ranges: dict[str, Range] = united(
            {
                limit.column: [
                    each.ranges.get(limit.column) for schema, each in known.items() if limit.column in schema.names
                ]
                for limit in limits
            }
        )
        """What statistics say of columns with limits, of local files that all have statistics."""

    def stamps(self, columns: Sequence[str] = ()) -> tuple[FileStamp, ...]:
        """Every file as it was found.

        Args:
            columns: whose bytes are read and count as well, of local files.
        """
        with ThreadPoolExecutor() as pool:
            values = list(pool.map(functools.partial(self._values, frozenset(columns)), self._found))
        footers = self._found.values()
        return tuple(replace(footer.stamp, values=value) for footer, value in zip(footers, values, strict=True))

    def _values(self, columns: frozenset[str], file: str) -> int:
        """CRC-32 of the column chunks of some columns, as they lie in the file."""
        found = 0
        if not self._local or not columns:
            return found
        try:
            with self._filesystem.open_input_file(file) as stream:
                metadata = pq.read_metadata(pa.BufferReader(_tail(stream)))
                for index in range(metadata.num_row_groups):
                    group = metadata.row_group(index)
                    for chunk in map(group.column, range(group.num_columns)):
                        if chunk.path_in_schema in columns:
                            start = chunk.dictionary_page_offset or chunk.data_page_offset
                            found = zlib.crc32(stream.read_at(chunk.total_compressed_size, start), found)
        except _READ_ERRORS as error:
            raise _damaged(file, error, "column chunks") from error
        return found

    def reader(self, columns: Sequence[str]) -> Callable[[RowGroup], pa.Table]:
        """A function that reads those `columns` of a row group which its file has; some files stay open.

        Raises:
            UserError: a row group is damaged, or its file has changed since its footer was read.
            OutageError: the store does not answer.
        """
        opened = functools.lru_cache(_OPEN_FILES)(self._open)

        def read(row_group: RowGroup) -> pa.Table:
            file, part = row_group.file, f"row group {row_group.index}"
            try:
                table = self._patiently(
                    lambda: opened(file).read_row_group(row_group.index, columns=list(columns)), file
                )
            except UserError:
                raise
            except _READ_ERRORS as error:
                self._open(file)  # tells a file that changed from one that is damaged
                raise _damaged(file, error, part) from error
            self._check_unwritten(file)
            if table.num_rows != row_group.rows:
                raise _damaged(file, f"{table.num_rows} rows, the footer says {row_group.rows}", part)
            return table

        return read

    def mean(self, column: str) -> float | None:
        """Mean of a column of numbers, from row groups spread evenly over the files; None where none has a value.

        Raises:
            UserError: as `reader`.
        """
        known = self.ranges.get(column)
        if known is not None and known.low is not None and known.low == known.high:
            return float(known.low)
        places = np.linspace(0, len(self.row_groups) - 1, min(len(self.row_groups), _MEASURED)).astype(int)
        read = self.reader([column])
        columns = [read(self.row_groups[place])[column].cast(pa.float64(), safe=False) for place in places]
        mean: float | None = pc.mean(
            pa.chunked_array([c for each in columns for c in each.chunks], pa.float64())
        ).as_py()
        return mean

    def _footer(self, file: str) -> _Footer:
        written = self._written(file)
        try:
            _, size, tail = self._patiently(functools.partial(_opened, self._filesystem, file), file)
            parquet = pq.ParquetFile(pa.BufferReader(tail))
            schema = parquet.schema_arrow.remove_metadata()
            groups = _row_groups(file, parquet.metadata)
        except _READ_ERRORS as error:
            raise _damaged(file, error, "footer") from error
        rows = sum(group.rows for group in groups)
        stamp = FileStamp(file.removeprefix(self._base), size, rows, _digest(tail))
        return _Footer(stamp, written, schema, groups)

    def _open(self, file: str) -> pq.ParquetFile:
        """The file, if it is still the one whose footer was read."""
        self._check_unwritten(file)
        stamp = self._found[file].stamp
        try:
            stream, size, tail = self._patiently(functools.partial(_opened, self._filesystem, file), file)
        except FileNotFoundError:
            raise _changed(file, "it is gone") from None
        except _READ_ERRORS as error:
            raise _damaged(file, error, "footer") from error
        if (size, _digest(tail)) != (stamp.size, stamp.footer):
            raise _changed(file, f"{stamp.size} bytes, now {size}; its footer is another one")
        metadata = pq.read_metadata(pa.BufferReader(tail))
        return pq.ParquetFile(stream, metadata=metadata, pre_buffer=not self._local, page_checksum_verification=True)

    def _patiently(self, read: Callable[[], T], file: str) -> T:
        return read() if self._local else self._patience(read, f"{self._filesystem.type_name}://{file}")

    def _written(self, file: str) -> tuple[int, int] | None:
        """Size and time of the last write; of local files only, as others tell times of differing precision."""
        if not self._local:
            return None
        try:
            found = os.stat(file)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _check_unwritten(self, file: str) -> None:
        before, now = self._found[file].written, self._written(file)
        if before != now:
            raise _changed(file, "it is gone" if now is None else "it was written again")


@dataclass(frozen=True)
class _Footer:
    """What is kept of a footer."""

    stamp: FileStamp
    written: tuple[int, int] | None
    schema: pa.Schema
    row_groups: list[RowGroup]


def _row_groups(file: str, metadata: pq.FileMetaData) -> list[RowGroup]:
    """The row groups that hold rows."""
    groups, first_row = [], 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if rows < 0:
            raise ValueError(f"row group {index} has {rows} rows")
        if rows:
            groups.append(RowGroup(file, index, first_row, rows))
        first_row += rows
    if metadata.num_rows != first_row:
        raise ValueError(f"{metadata.num_rows} rows, its row groups have {first_row}")
    return groups


def _opened(filesystem: fs.FileSystem, file: str) -> tuple[pa.NativeFile, int, bytes]:
    """A file, its size and its footer."""
    stream = filesystem.open_input_file(file)
    return stream, stream.size(), _tail(stream)


def _tail(stream: pa.NativeFile) -> bytes:
    """The footer, its length and the closing magic number, as they stand at the end of a file."""
    size = stream.size()
    tail: bytes = stream.read_at(min(size, _TAIL), max(size - _TAIL, 0))
    length = min(int.from_bytes(tail[-8:-4], "little") + 8, size)
    return tail[-length:] if length <= len(tail) else stream.read_at(length, size - length)


def _digest(tail: bytes) -> str:
    return hashlib.sha256(tail).hexdigest()[:16]


def _damaged(file: str, error: Exception | str, part: str) -> UserError:
    if isinstance(error, PermissionError) or "AWS Error" in str(error) or "Azure Error" in str(error):
        return UserError(f"{file}: cannot be read ({part}: {error}); correct credentials or permissions")
    return UserError(f"{file}: not a readable Parquet file ({part}: {error}); write it again or move it away")


def _changed(file: str, how: str) -> UserError:
    return UserError(f"{file} changed while reading ({how}); leave files alone while a run reads them")
