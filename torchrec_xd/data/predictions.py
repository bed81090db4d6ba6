"""Predictions as Parquet, written whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from torchrec_xd.data.column_types import holds_strings
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.filesystems import filesystem_of
from torchrec_xd.data.outages import Patience
from torchrec_xd.data.strings import user_numbers
from torchrec_xd.errors import OutageError, UserError
from torchrec_xd.given_paths import masked
from torchrec_xd.writable import check_output_file

PredictionTable: TypeAlias = pa.Table
"""Predictions in memory."""


@dataclass(frozen=True)
class PredictionColumns:
    """What a table of predictions holds.

    Raises:
        UserError: two columns have one name.
    """

    user: str
    """Name of the user column, int64 unless it is among `kept`."""
    tasks: tuple[str, ...]
    """Their probabilities become float32 columns `prob_<task>`, truncated to [0, 1]."""
    scores: tuple[str, ...] = ()
    """These become float32 columns `score_<name>`, as they are."""
    kept: tuple[pa.Field, ...] = ()
    """Columns of the scored rows that pass through as they are."""
    keeps_user: bool = False
    """Whether the first of these is the user column."""

    def __post_init__(self) -> None:
        names = self.schema.names
        for field in self.kept:
            if names.count(field.name) > 1:
                raise UserError(f"--keep {field.name}: predictions have a column of that name already; leave it out")

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        names = [*(f"prob_{task}" for task in self.tasks), *(f"score_{name}" for name in self.scores)]
        numbers = [pa.field(name, pa.float32()) for name in names]
        users = [] if self.keeps_user else [pa.field(self.user, pa.int64())]
        return pa.schema([*users, *self.kept, *numbers])

    def table(
        self, user_B: NDArray[np.int64], score_TB: NDArray[np.float32], kept: PredictionTable | None = None
    ) -> PredictionTable:
        """Rows of one batch: users, for each column its predictions, and the columns that pass through."""
        count = len(self.tasks)
        prob_TB = score_TB[:count].clip(0, 1)
        through = [] if kept is None else kept.columns
        users = [] if self.keeps_user else [user_B]
        return pa.table([*users, *through, *prob_TB, *score_TB[count:]], schema=self.schema)

    def concat(self, tables: Iterable[PredictionTable]) -> PredictionTable:
        """Tables of batches, one after the other."""
        return pa.concat_tables([self.schema.empty_table(), *tables]).combine_chunks()


class KeptColumns:
    """Columns of files as they are, taken front to back, to stand next to the predictions for their rows.

    Args:
        paths: of the files.
        root: what relative paths start from.
        columns: their names.
        user: a column of strings that becomes the first one; files may differ in how they lay out its strings.
        names: new names of some columns.

    Raises:
        UserError: a file lacks one of the columns, or has it twice or in another type than the first file.
    """

    def __init__(
        self,
        paths: Sequence[str],
        root: str,
        columns: Sequence[str],
        user: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._names = names or {}
        self.fields: tuple[pa.Field, ...] = ()
        self._user = user
        self._columns = tuple(columns) if user is None else (user, *columns)
        self._rest: list[pa.Table] = []
        if self._columns:
            files = ParquetFiles(paths, root, self._check)
            read = files.reader(self._columns)
            self._tables = (self._plain(read(group).select(self._columns)) for group in files.row_groups)

    def take(self, rows: int) -> PredictionTable:
        """The next rows."""
        taken, left = [pa.schema(self.fields).empty_table()], rows
        while left and self._columns:
            table = self._rest.pop() if self._rest else next(self._tables)
            taken.append(table.slice(0, left))
            if table.num_rows > left:
                self._rest.append(table.slice(left))
            left -= taken[-1].num_rows
        return pa.concat_tables(taken)

    def _check(self, file: str, found: pa.Schema) -> None:
        for name in self._columns:
            if found.names.count(name) != 1:
                raise UserError(f"--keep {name}: {file} has no such column; it has: {', '.join(found.names)}")
        own = tuple(self._field(found.field(name)) for name in self._columns)
        self.fields = self.fields or own
        if own != self.fields:
            name = next(field.name for field, other in zip(own, self.fields, strict=True) if field != other)
            raise UserError(f"--keep {name}: its type in {file} is not that of the other files; write it alike in all")

    def _plain(self, table: pa.Table) -> pa.Table:
        """With its new names, and its users as plain strings."""
        table = table.rename_columns([field.name for field in self.fields])
        return table.cast(pa.schema(self.fields))  # a file may say that a column has no nulls, and the next may not

    def _field(self, found: pa.Field) -> pa.Field:
        if found.name != self._user:
            return pa.field(self._names.get(found.name, found.name), found.type)
        kind = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return pa.field(found.name, pa.string() if text else pa.binary())


def check_output(output: str | Path) -> None:
    """Check that predictions can be written to a file, local or on an object store, where an empty object is written.

    Raises:
        UserError: they cannot, as far as one can tell.
        OutageError: the store does not answer.
    """
    if not _on_store(output):
        check_output_file(output, "--out")
        return

    shown = f"--out {masked(str(output))}"
    key = str(output).partition("?")[0].partition("://")[2].partition("/")[2]
    if not key or key.endswith("/"):
        raise UserError(f"{shown}: names no object; write s3://BUCKET/PATH.parquet")

    def tried() -> fs.FileType:
        filesystem, path = filesystem_of(str(output))
        kind = filesystem.get_file_info(path.partition("/")[0]).type
        if kind != fs.FileType.NotFound:
            trial = f"{path}.partial"  # what lies at the path stays until it is replaced
            filesystem.open_output_stream(trial).close()
            with contextlib.suppress(OSError):  # some roles may write and not delete
                filesystem.delete_file(trial)
        return kind

    try:
        kind = Patience()(tried, masked(str(output)))
    except OSError as error:
        raise UserError(f"{shown}: cannot be written: {error}; correct path, credentials or permissions") from None
    if kind == fs.FileType.NotFound:
        raise UserError(f"{shown}: there is no such bucket; make it, or name another one")


def scratch_folder(output: str | Path) -> Path | None:
    """Where to keep what is only needed to write predictions: their folder; None, the system's own, for a store's."""
    return None if _on_store(output) else Path(output).absolute().parent


def _on_store(output: str | Path) -> bool:
    """Whether it is on a store that shows a file when it is whole."""
    return str(output).startswith(("s3://", "gs://", "gcs://", "abfs://", "abfss://"))


def _move_to_store(file: Path, location: str) -> None:
    """Where this fails, the file stays, and the message names it."""

    def copied() -> None:
        filesystem, path = filesystem_of(location)
        fs.copy_files(str(file), path, fs.LocalFileSystem(), filesystem)

    kept = f"the predictions are kept in {file}: copy them from there"
    try:
        Patience()(copied, masked(location))
    except OutageError as error:
        raise OutageError(f"{error}\n{kept}") from error
    except (UserError, OSError) as error:
        raise UserError(f"--out {masked(location)}: cannot be written: {error}\n{kept}") from error
    file.unlink()


class PredictionWriter:
    """Enter it and write batch by batch; the file appears when the block is left without an error.

    What cannot be copied to an object store is kept in the temporary folder, and the error names it: an `OutageError`
    where the store does not answer, else a `UserError`.

    Args:
        output: the file to write, one on an object store by way of a temporary folder; replaced if it exists.
        columns: what it holds.
    """

    def __init__(self, output: str | Path, columns: PredictionColumns) -> None:
        self._columns = columns
        self._store = str(output) if _on_store(output) else None
        self._path = Path(tempfile.mkdtemp(), "predictions.parquet") if self._store else Path(output)
        self._partial = self._path.with_name(self._path.name + ".partial")

    def __enter__(self) -> PredictionWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._partial, self._columns.schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._partial.replace(self._path)
                if self._store is not None:
                    _move_to_store(self._path, self._store)
        finally:
            self._partial.unlink(missing_ok=True)
            if self._store is not None and not self._path.exists():
                self._path.parent.rmdir()

    def write(self, table: PredictionTable) -> int:
        """Write the rows of one batch, as `PredictionColumns.table` makes them; returns their number."""
        self._writer.write_table(table)
        return int(table.num_rows)


def read_predictions(path: Path, column: str) -> NDArray[Any]:
    """One column of a file as `PredictionWriter` writes them, [R].

    Raises:
        UserError: there is no such file, it is no Parquet, or it has no such column of numbers.
    """
    found = _read_column(path, column)
    if not (pa.types.is_integer(found.type) or pa.types.is_floating(found.type)):
        raise UserError(f"{path}: column '{column}' holds {found.type}, not numbers")
    values: NDArray[Any] = found.to_numpy()
    return values


def read_users(path: Path, column: str) -> NDArray[Any]:
    """The users of a file as `PredictionWriter` writes them, as numbers [R]: those of strings as batches have them.

    Raises:
        UserError: as `read_predictions` does.
    """
    found = _read_column(path, column)
    if not holds_strings(found.type):
        return read_predictions(path, column)
    if found.null_count:
        raise UserError(f"{path}: {found.null_count:,} users in column '{column}' are null")
    return np.concatenate([user_numbers(chunk) for chunk in found.chunks] or [np.zeros(0, dtype=np.int64)])


def _read_column(path: Path, column: str) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if (count := names.count(column)) != 1:
                problem = f"has no column '{column}'" if not count else f"has column '{column}' {count} times"
                raise UserError(f"{path}: {problem}; its columns are: {', '.join(names)}")
            return file.read([column])[column]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
