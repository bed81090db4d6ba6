"""A sample of an input: at most 10,000 rows from all over its files, and what Parquet footers say about all rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.errors import UserError
from torchrec_xd.prepare import atomic
from torchrec_xd.prepare.init.files import Files
from torchrec_xd.prepare.init.sql import engine, sql_name

MAX_ROWS = 10_000
_FOOTERS = 32
"""Parquet files whose footers are read."""
_PIECES = 8
"""Places in the data that rows are taken from."""
_PIECE_BYTES = 512 * 1024
"""Of text, at each place."""
_COMPRESSION = 4
"""Bytes of text in a byte of a compressed file, roughly."""


@dataclass(frozen=True)
class Sample:
    """What was seen of an input."""

    files: Files
    settings: dict[str, Any]
    """Of the recipe's `inputs`."""
    table: pa.Table
    rows: int
    """Of the whole input; an estimate where `exact` is false."""
    exact: bool
    footers: tuple[Any, ...] = ()
    """Of Parquet: metadata of some files."""
    questions: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Name of the input."""
        return self.files.name

    @property
    def whole(self) -> bool:
        """Whether the sample is all rows."""
        return self.exact and self.table.num_rows == self.rows

    def ranges(self, column: str) -> list[tuple[Any, Any, int]]:
        """Least value, greatest value and rows of the row groups whose footers tell them for a column."""
        found = []
        for footer in self.footers:
            for group in range(footer.num_row_groups):
                rows = footer.row_group(group)
                for i in range(rows.num_columns):
                    chunk = rows.column(i)
                    if chunk.path_in_schema == column and chunk.statistics is not None and chunk.statistics.has_min_max:
                        found.append((chunk.statistics.min, chunk.statistics.max, int(rows.num_rows)))
        return found


def sample(files: Files) -> Sample:
    """Look at an input.

    Raises:
        UserError: a file cannot be read, or there is no row, or two columns have one name to SQL.
    """
    if files.format in ("parquet", "delta", "iceberg"):
        seen = _parquet(files)
    else:
        with tempfile.TemporaryDirectory() as folder:
            seen = _text(files, Path(folder))
    where = files.settings["path"]
    if seen.table.num_rows == 0:
        raise UserError(f"{where}: has no rows; name files that have some")
    lower = [name.lower() for name in seen.table.column_names]
    for name in seen.table.column_names:
        if lower.count(name.lower()) > 1:
            raise UserError(f"{where}: column '{name}' stands there twice (SQL ignores capitals); rename one")
        if not name.strip():
            raise UserError(f"{where}: a column has no name; give it one")
    return seen


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread, first and last among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})


def _parquet(files: Files) -> Sample:
    chosen = _spread(len(files.paths), _FOOTERS)
    footers = [_footer(files, files.paths[i]) for i in chosen]
    all_seen = len(chosen) == len(files.paths)
    seen_rows = sum(footer.num_rows for footer in footers)
    seen_bytes = sum(files.sizes[i] for i in chosen)
    rows = seen_rows if all_seen else round(seen_rows * files.size / max(seen_bytes, 1))
    groups = [
        (files.paths[place], group)
        for place, footer in zip(chosen, footers, strict=True)
        for group in range(footer.num_row_groups)
        if footer.row_group(group).num_rows
    ]
    if all_seen and rows <= MAX_ROWS:
        parts = [_rows(files, path, group, MAX_ROWS) for path, group in groups]
    else:
        places = [groups[i] for i in _spread(len(groups), _PIECES)]
        parts = [_rows(files, path, group, MAX_ROWS // len(places)) for path, group in places]
    try:
        empty = footers[0].schema.to_arrow_schema().empty_table()
        table = pa.concat_tables(parts, promote_options="permissive") if parts else empty
    except pa.ArrowException as error:
        raise UserError(
            f"{files.settings['path']}: the files do not have the same columns: {error}; name files of one kind"
        ) from None
    return Sample(files, files.settings, table, rows, all_seen, tuple(footers))


def _open(files: Files, path: str) -> pq.ParquetFile:
    # A small buffer: only the first pages of a row group are read.
    return pq.ParquetFile(files.filesystem.open(path, "rb"), buffer_size=1 << 16, pre_buffer=False)


def _footer(files: Files, path: str) -> Any:
    try:
        with _open(files, path) as file:
            return file.metadata
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}; move it away, or write it anew") from None


def _rows(files: Files, path: str, group: int, count: int) -> pa.Table:
    try:
        with _open(files, path) as file:
            batch = next(file.iter_batches(count, row_groups=[group]))
            return pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}; move it away, or write it anew") from None


def _text(files: Files, folder: Path) -> Sample:
    """CSV, JSON lines and atomic files: pieces of them in one file, which DuckDB reads."""
    pieces = list(_pieces(files))
    cut = any(part for _, part in pieces)
    seen_bytes = sum(len(piece) for piece, _ in pieces)
    copied = folder / "sample.txt"
    copied.write_bytes(b"".join(piece for piece, _ in pieces))
    settings, read = dict(files.settings), engine()
    try:
        if files.format == "atomic":
            first = files.filesystem.unstrip_protocol(files.paths[0])
            columns, options = atomic.atomic_columns(first), atomic.atomic_options(first)
            source = read.read_csv(str(copied), **_csv_options(options, cut))
            source = source.project(atomic.atomic_select(columns))
        elif files.format == "json":
            source = read.read_json(str(copied), sample_size=-1)
        else:
            source, found = _csv(read, str(copied), files, cut)
            settings |= found
        table = source.to_arrow_table()
    except duckdb.Error as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{files.settings['path']}: cannot be read as {_WORDS[files.format]}: {reason}; correct the file, or "
            "convert it to Parquet"
        ) from None
    finally:
        read.close()
    packed = cut and _is_packed(files.paths[0])
    size = files.size * (_COMPRESSION if packed else 1)
    rows = table.num_rows if not cut else round(table.num_rows * size / max(seen_bytes, 1))
    if table.num_rows > MAX_ROWS:
        table = table.take(pa.array(np.linspace(0, table.num_rows - 1, MAX_ROWS).astype(np.int64)))
    questions = ("compressed, so that only its first rows were seen: are the others like them?",) if packed else ()
    return Sample(files, settings, table, rows, not cut, questions=questions)


def _is_packed(path: str) -> bool:
    return path.lower().endswith((".gz", ".zst"))


_WORDS = {"csv": "CSV", "json": "JSON lines", "atomic": "RecBole's atomic files"}


def _csv_options(options: dict[str, Any], cut: bool) -> dict[str, Any]:
    names = {"delim": "sep", "quote": "quotechar", "escape": "escapechar", "skip": "skiprows"}
    return {names.get(key, key): value for key, value in options.items()} | {"ignore_errors": cut}


def _csv(read: Any, path: str, files: Files, cut: bool) -> tuple[Any, dict[str, Any]]:
    """The rows of a CSV, and how the recipe has to say that it is read: what is known of it already, or is seen."""
    given = files.settings
    separator = given.get("separator", "\t" if ".tsv" in files.paths[0].lower() else None)
    known = {} if separator is None else {"delim": separator}
    known |= {"header": given["header"]} if "header" in given else {}
    told = "".join(f", {name} = {value!r}" for name, value in known.items())
    found = read.execute(f"FROM sniff_csv(?, sample_size=-1, ignore_errors={cut}{told})", [path])
    sniffed = dict(zip([each[0] for each in found.description], found.fetchall()[0], strict=True))
    separator, header = sniffed["Delimiter"], bool(sniffed["HasHeader"])
    names = [each["name"] for each in sniffed["Columns"]]
    settings: dict[str, Any] = {} if separator == "," else {"separator": separator}
    if not header:
        settings |= {"header": False, "columns": list(given.get("columns", names))}
        if len(settings["columns"]) != len(names):
            raise UserError(
                f"{given['path']}: has {len(names)} columns, and {len(settings['columns'])} are expected "
                f"({', '.join(settings['columns'][:6])}, …)"
            )
        names = settings["columns"]
    types = dict(given.get("types", {}))
    options = {"sep": separator, "header": header, "names": names, "sample_size": -1, "ignore_errors": cut}
    table = read.read_csv(path, **options, dtype=types) if types else read.read_csv(path, **options)
    texts = [name for name, kind in zip(table.columns, table.types, strict=True) if str(kind) == "VARCHAR"]
    types |= dict.fromkeys(_leading_zeros(table, [name for name in texts if name not in types]), "VARCHAR")
    types |= _seen_later(read, files, table, options | ({"dtype": types} if types else {}))
    return table, {**settings, **({"types": types} if types else {})}


def _seen_later(read: Any, files: Files, table: Any, options: dict[str, Any]) -> dict[str, str]:
    """Types that the first rows of the first file, by which DuckDB goes, do not show."""
    if "file" not in files.filesystem.protocol:
        return {}
    first = read.read_csv(files.paths[0], **{**options, "sample_size": 20_480})
    kinds = zip(table.columns, table.types, first.types, strict=True)
    return {name: str(wide) for name, wide, narrow in kinds if str(wide) != str(narrow)}


def _leading_zeros(table: Any, columns: Sequence[str]) -> list[str]:
    """Columns of digits that begin with 0: not every engine sees that they are no numbers."""
    if not columns:
        return []
    tests = ", ".join(f"coalesce(bool_and(regexp_full_match({sql_name(name)}, '[0-9]+')), false)" for name in columns)
    found = table.aggregate(tests).fetchall()[0]
    return [name for name, digits in zip(columns, found, strict=True) if digits]


def _pieces(files: Files) -> Iterator[tuple[bytes, bool]]:
    """Whole lines from all over the files, the header once, and whether a piece was cut out."""
    small = files.size <= _PIECES * _PIECE_BYTES
    chosen = range(len(files.paths)) if small else _spread(len(files.paths), _PIECES)
    each = 1 if len(files.paths) >= _PIECES else -(-_PIECES // len(files.paths))
    has_header = files.format in ("csv", "atomic")
    header = None
    for i, place in enumerate(chosen):
        path, size = files.paths[place], files.sizes[place]
        packed = _is_packed(path)
        try:
            with files.filesystem.open(path, "rb", compression="infer") as stream:
                # One piece of each of many files: of the first from its start, of the last from near its end.
                parts = np.linspace(0, 1, each, endpoint=False) + (i / len(chosen) if each == 1 else 0)
                starts = [0] if packed or small else [int(size * part) for part in parts]
                for start in starts:
                    length = -1 if small and not packed else _PIECE_BYTES
                    piece, cut = _lines(stream, start, length)
                    if start == 0 and has_header:
                        first = piece[: piece.find(b"\n") + 1]
                        if header is None:
                            header = first
                        elif first == header:
                            piece = piece[len(first) :]
                    yield piece, cut or len(chosen) < len(files.paths)
        except (OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


def _lines(stream: Any, start: int, length: int) -> tuple[bytes, bool]:
    """Whole lines from a place on, and whether something before or after them was left out."""
    if start:
        stream.seek(start)
        stream.readline()
    piece = stream.read(length)
    more = length >= 0 and len(piece) == length
    if more:
        piece += stream.readline()
    if piece and not piece.endswith(b"\n"):
        piece += b"\n"
    return piece, bool(start) or more
