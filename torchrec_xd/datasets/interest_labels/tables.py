"""The tables that labels are made from: found and checked as a training run checks its files.

Queries see copies with the columns that labels need, under names of our own, so that no column of a user's meets one of
a query. Users' columns are read again when the labels are written next to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.locations import find_files
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.outages import Patience
from torchrec_xd.data.shards import RowGroup
from torchrec_xd.errors import UserError

END = 2**61
"""Times lie strictly between -END and END, so that a window around them stays within 64 bits."""

Meaning = Literal["key", "heading", "time", "until", "acted"]
"""`key`: compared between tables; `heading`: counted by in the report."""

_KEYS = "whole numbers, strings or booleans"
_TIMES = (
    "it holds whole numbers in the unit of labels.window: cast it, dates for example to seconds since 1970 (DuckDB: "
    "epoch_ms(x) // 1000) or days (x::date - date '1970-01-01')"
)
_RULES: dict[Meaning, str] = {
    "key": f"it holds {_KEYS}: cast it",
    "heading": "rows cannot be counted by it: cast it to whole numbers or strings",
    "time": _TIMES,
    "until": _TIMES,
    "acted": "it is a boolean or a number, 0 or 1: cast it",
}
_WIDE = pa.decimal128(20, 0)
"""Holds signed and unsigned 64-bit integers."""


@dataclass(frozen=True)
class Column:
    """A column that labels need."""

    name: str
    """In the user's files."""
    setting: str
    """Key of the settings that names it."""
    meaning: Meaning
    staged: str
    """Its name in queries."""


class Log:
    """The files of one table.

    Args:
        key: the setting that names them.
        location: file, folder or glob; a relative one starts at the working directory.
        columns: those that labels need.

    Raises:
        UserError: nothing is there, or a file is unreadable, lacks a column, has it twice or of another type.
    """

    def __init__(self, key: str, location: str, columns: Sequence[Column]):
        self.key, self.location, self.columns = key, location, tuple(columns)
        self.schemas: dict[str, pa.Schema] = {}
        """Every Arrow schema that occurs, by the first file that has it."""
        try:
            self._filesystem, files = find_files([location], "")
            self._files = ParquetFiles([location], "", self._check)
        except (OSError, ValueError) as error:  # a UserError, or PyArrow's over a name that no file can have
            raise UserError(f"{key}: {error}") from None
        self.row_groups: dict[str, list[RowGroup]] = {file: [] for file in files}
        """Those that hold rows, by file."""
        for group in self._files.row_groups:
            self.row_groups.setdefault(group.file, []).append(group)

    def _check(self, file: str, schema: pa.Schema) -> None:
        faults = []
        for column in self.columns:
            count = schema.names.count(column.name)
            if not count:
                names = ", ".join(schema.names)
                faults.append(f"{file} has no column '{column.name}' ({column.setting}); it has: {names}")
            elif count > 1:
                faults.append(f"{file} has column '{column.name}' {count} times; rename or drop one")
            elif not _allowed(found := schema.field(column.name).type, column.meaning):
                rule = _RULES[column.meaning]
                faults.append(f"{file}: column '{column.name}' ({column.setting}) has type {found}; {rule}")
        if faults:
            raise UserError("\n".join(faults))
        self.schemas[file] = schema

    def schema(self, file: str) -> pa.Schema:
        """The Arrow schema of any file, with its metadata."""
        try:
            place = f"{self._filesystem.type_name}://{file}"
            return Patience()(lambda: pq.read_schema(file, filesystem=self._filesystem), place)
        except (OSError, ValueError, LookupError) as error:
            raise UserError(
                f"{file} changed while reading ({error}); leave files alone while a command reads them"
            ) from None

    def read(self, row_groups: Sequence[RowGroup], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Row group by row group, the columns in this order.

        Raises:
            UserError: one is damaged.
        """
        read = self._files.reader(columns)
        for group in row_groups:
            yield read(group).select(columns)

    def stage(self, path: Path, types: Mapping[str, pa.DataType]) -> int:
        """Write what labels need of all rows as one file, in their order; returns their number.

        Args:
            path: the file.
            types: from `staged_types`.

        Raises:
            UserError: a value breaks the rule of its column, or a row group is damaged.
        """
        names = list(dict.fromkeys(column.name for column in self.columns))
        schema = pa.schema([(column.staged, types[column.staged]) for column in self.columns])
        groups = [group for groups in self.row_groups.values() for group in groups]
        with pq.ParquetWriter(path, schema) as writer:
            for group, rows in zip(groups, self.read(groups, names), strict=True):
                origin = Origin(group.file, group.first_row)
                values = [_staged(rows[column.name], column, types[column.staged], origin) for column in self.columns]
                writer.write_table(pa.table(values, schema=schema))
        return sum(group.rows for group in groups)

    def relative_names(self) -> dict[str, PurePosixPath]:
        """Every file's path below the folder that the location names, or the last one before its first wildcard."""
        folders = PurePosixPath(os.path.commonpath([PurePosixPath(file).parent for file in self.row_groups]))
        _, is_uri, rest = self.location.partition("://")
        named = PurePosixPath(rest.partition("?")[0]) if is_uri else PurePosixPath(Path(self.location).absolute())
        shared = [part for part, _ in takewhile(_equal, zip(folders.parts, named.parts, strict=False))]
        base = PurePosixPath(*(shared or folders.parts))
        return {file: PurePosixPath(file).relative_to(base) for file in self.row_groups}


def staged_types(logs: Sequence[Log]) -> dict[str, pa.DataType]:
    """The type of every staged column, the same in all tables.

    Raises:
        UserError: a column is of one kind in one file and of another kind in another.
    """
    types: dict[str, pa.DataType] = {}
    first_seen: dict[str, str] = {}
    columns = ((log, file, column) for log in logs for file in log.schemas for column in log.columns)
    for log, file, column in columns:
        found = log.schemas[file].field(column.name).type
        wanted = _staged_type(found, column.meaning)
        seen = f"{found} in {file} ({log.key})"
        if pa.types.is_null(wanted):
            continue
        other = types.setdefault(column.staged, wanted)
        first = first_seen.setdefault(column.staged, seen)
        if {other, wanted} == {pa.int64(), _WIDE}:
            types[column.staged] = _WIDE
        elif wanted != other:
            raise UserError(
                f"column '{column.name}' ({column.setting}) has type {seen}, and {first}; it has one kind in all "
                f"files, {_KEYS}: cast one of the two"
            )
    return {column.staged: types.get(column.staged, pa.int64()) for log in logs for column in log.columns}


def write_labelled(log: Log, labels: Path, columns: Mapping[str, str], folder: Path) -> None:
    """Write the files of a log with more columns, a row group at a time.

    Args:
        log: rows that keep files, order, columns and row groups.
        labels: a Parquet file with a row for each of theirs, in the same order.
        columns: its columns -> what they are called in the files.
        folder: where the files are written, of the same relative names.

    Raises:
        UserError: a row group is damaged, or PyArrow can read it and not write it.
    """
    added = pa.schema([(name, pa.int8()) for name in columns.values()])
    sizes = [group.rows for groups in log.row_groups.values() for group in groups]
    with pq.ParquetFile(labels) as file:
        values = _cut_anew(file.iter_batches(columns=list(columns)), added.empty_table(), sizes)
        for name, below in log.relative_names().items():
            path, schema = folder / below, log.schema(name)
            whole = pa.schema([*schema, *added], metadata=schema.metadata)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with pq.ParquetWriter(path, whole, compression="zstd") as writer:
                    for rows in log.read(log.row_groups[name], schema.names):
                        labelled = pa.table([*rows.columns, *next(values).columns], schema=whole)
                        writer.write_table(labelled, row_group_size=rows.num_rows)
            except pa.ArrowException as error:
                raise UserError(f"{name}: its rows cannot be written again: {error}") from None


def _cut_anew(batches: Iterator[pa.RecordBatch], held: pa.Table, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Tables of these sizes from the rows of batches, with names and types of the empty table `held`."""
    names, schema = held.column_names, held.schema
    for size in sizes:
        while held.num_rows < size:
            more = pa.Table.from_batches([next(batches)]).rename_columns(names)
            held = pa.concat_tables([held, more.cast(schema)])
        yield held.slice(0, size)
        held = held.slice(size)


# ---- types -----------------------------------------------------------------------------------------------------------


def _allowed(found: pa.DataType, meaning: Meaning) -> bool:
    types = pa.types
    number = types.is_integer(found) or types.is_null(found)
    if meaning in ("time", "until"):
        return bool(number)
    if meaning == "acted":
        return bool(number or types.is_boolean(found) or types.is_floating(found) or types.is_decimal(found))
    inner = _inner(found)
    key = types.is_integer(inner) or types.is_null(inner) or types.is_boolean(inner) or _is_string(inner)
    text = types.is_floating(inner) or types.is_decimal(inner) or types.is_temporal(inner)
    return bool(key or (text and meaning == "heading"))


def _staged_type(found: pa.DataType, meaning: Meaning) -> pa.DataType:
    """Strings are kept as bytes, which need not be UTF-8; headings of other types become text."""
    inner = _inner(found)
    if meaning in ("time", "until"):
        staged = pa.int64()
    elif meaning == "acted":
        staged = pa.int8()
    elif pa.types.is_integer(inner):
        staged = _WIDE if inner == pa.uint64() else pa.int64()
    else:
        staged = inner if pa.types.is_boolean(inner) or pa.types.is_null(inner) else pa.large_binary()
    return staged


def _inner(found: pa.DataType) -> pa.DataType:
    return found.value_type if pa.types.is_dictionary(found) else found


def _is_string(found: pa.DataType) -> bool:
    types = pa.types
    views = types.is_string_view(found) or types.is_binary_view(found)
    plain = types.is_string(found) or types.is_binary(found)
    return bool(views or plain or types.is_large_string(found) or types.is_large_binary(found))


# ---- values ----------------------------------------------------------------------------------------------------------


def _staged(values: pa.ChunkedArray, column: Column, wanted: pa.DataType, origin: Origin) -> Any:
    """Checked values of one column in the type of the staged table."""
    if column.meaning in ("time", "until"):
        return _times(values, column, origin)
    if column.meaning == "acted":
        return _acted(values, column, origin)
    values = values.cast(_inner(values.type))
    if wanted == pa.large_binary() and not _is_string(values.type):
        values = values.cast(pa.string())
    return values.cast(wanted)


def _times(values: pa.ChunkedArray, column: Column, origin: Origin) -> Any:
    """Whole numbers within ±END; an `until` beyond is a way to say never."""
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise origin.fault(column.name, row, None, f"is no time ({column.setting}); fill it in or drop the row")
    if values.type == pa.uint64():
        times = np.minimum(values.to_numpy(), np.uint64(END)).astype(np.int64)
    else:
        times = np.clip(values.cast(pa.int64()).to_numpy(), -END, END)
    beyond = np.abs(times) == END
    if column.meaning == "time" and beyond.any():
        row = int(np.argmax(beyond))
        rule = f"is no time ({column.setting}): its magnitude is 2^61 or more; correct or drop the row"
        raise origin.fault(column.name, row, values[row].as_py(), rule)
    return pa.array(times)


def _acted(values: pa.ChunkedArray, column: Column, origin: Origin) -> Any:
    numbers = values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    valid = (numbers == 0) | (numbers == 1)
    if not valid.all():
        row = int(np.argmin(valid))
        rule = f"is no label ({column.setting}); labels are 0 or 1: correct or drop the row"
        raise origin.fault(column.name, row, values[row].as_py(), rule)
    return pa.array(numbers.astype(np.int8))


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]
