"""The inputs of a recipe as tables: files of one format and one set of columns; views over them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import duckdb
import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot

from torchrec_xd.data.filesystems import join
from torchrec_xd.data.lake import lake_files
from torchrec_xd.data.locations import find_files
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path
from torchrec_xd.prepare.atomic import ENDINGS as ATOMIC
from torchrec_xd.prepare.atomic import SEPARATOR, atomic_columns, atomic_options, atomic_select
from torchrec_xd.prepare.input_errors import explained, input_errors
from torchrec_xd.prepare.partitions import partitions
from torchrec_xd.prepare.recipe import Format, Input
from torchrec_xd.prepare.recipe_file import RecipeFile, choices
from torchrec_xd.prepare.tables import Tables, literal, quoted

ENDINGS: dict[str, Format] = {
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("csv", "tsv"), "csv"),
    **dict.fromkeys(("json", "jsonl", "ndjson"), "json"),
    **dict.fromkeys(ATOMIC, "atomic"),
}
"""Endings of file names, and what they are read as."""
COMPRESSED = ("gz", "zst")
"""What may follow the ending of a text file."""

MOST_SNIFFED = 32
"""Files whose first rows say what types the columns of an input have."""
_SHOWN = 120


def ending_of(path: str) -> str:
    """`csv` of `logs/day.csv`, `csv.gz` of `logs/day.csv.gz`; lower case."""
    parts = path.rpartition("/")[2].lower().split(".")
    return ".".join(parts[-2:]) if parts[-1] in COMPRESSED and len(parts) > 2 else parts[-1]


def format_of(path: str) -> Format | None:
    """The format by the ending of a file name; None where no format has it."""
    return ENDINGS.get(ending_of(path).partition(".")[0])


def open_inputs(
    tables: Tables, file: RecipeFile, replaced: Mapping[str, str], sample: int | None = None
) -> dict[str, list[str]]:
    """Name every input and view of a recipe as a table of the engine.

    Args:
        tables: of the engine.
        file: the recipe.
        replaced: input to the location of files that are read instead.
        sample: rows of every input that are read. Default: all. DuckDB only.

    Returns:
        Input to its files.

    Raises:
        UserError: no such files, files that differ in their columns, or a query that the engine refuses.
    """
    recipe = file.recipe
    unknown = [name for name in replaced if name not in recipe.inputs]
    if unknown:
        raise UserError(choices(unknown[0], f"an input of {file.origin}", recipe.inputs))
    found = {}
    for name, given in recipe.inputs.items():
        own = _elsewhere(given, replaced[name], recipe.root) if name in replaced else given
        found[name] = _open(tables, file, name, own, all_types=name not in replaced)
        if sample is not None:
            with input_errors(file, found):
                tables.temporary(f"_sample_{name}", tables.connection.table(name).limit(sample))
            tables.view(name, f"SELECT * FROM {quoted(f'_sample_{name}')}")
    for name, query in recipe.views.items():
        if name in recipe.inputs:
            raise file.fault(("views", name), "an input has the same name; rename one")
        try:
            statements = sqlglot.parse(query, read="duckdb")
            if len(statements) != 1 or not isinstance(statements[0], sqlglot.exp.Query):
                raise file.fault(("views", name), "one SELECT is expected")
            tables.view(name, query)
        except sqlglot.errors.SqlglotError as error:
            raise file.fault(("views", name), f"not valid SQL: {_first_line(error)}") from None
        except tables.faults as error:
            raise file.fault(("views", name), explained(error)) from None
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _elsewhere(given: Input, path: str, root: str) -> Input:
    """An input whose files are others, with what the recipe says of their format, where that is the same."""
    own = given.model_copy(update={"path": path, "format": None, "version": None})
    kind, before = _kind(own, root), _kind(given, root)
    if kind in (None, before):
        return own.model_copy(update={"format": before})
    return Input(path=path, types=given.types if kind in ("csv", "json") else {})


def _kind(given: Input, root: str) -> Format | None:
    first = given.path if isinstance(given.path, str) else given.path[0]
    return given.format or format_of(first) or _format_in(Path(join(root, first)))


def _open(tables: Tables, file: RecipeFile, name: str, given: Input, *, all_types: bool) -> list[str]:
    """Name one input; with `all_types` every column that it gives a type must be there."""
    key = ("inputs", name)
    locations = (given.path,) if isinstance(given.path, str) else given.path
    kind = _kind(given, file.recipe.root)
    wrong = _unused(kind, given)
    if wrong is not None:
        raise file.fault((*key, wrong[0]), wrong[1])
    if kind is None:
        raise file.fault(key, f"what is {locations[0]}? Name its 'format', one of: {', '.join(get_args(Format))}")
    try:
        for location in locations:
            if not location.startswith("file:"):
                local_path(join(file.recipe.root, location))
        if kind in ("delta", "iceberg"):
            place = join(file.recipe.root, locations[0])
            paths, _version = Patience()(functools.partial(lake_files, place, kind, given.version), place)
            tables.read(name, "parquet", paths, {}, {})
            return paths
        paths = _files(kind, locations, file.recipe.root)
        if kind == "atomic":
            _same_headers(paths, {"header": True, "delim": given.separator or SEPARATOR})
            options = atomic_options(paths[0], given.separator or SEPARATOR)
            tables.read(f"_text_{name}", "csv", paths, options.pop("columns"), options)
            typed = atomic_select(atomic_columns(paths[0], given.separator or SEPARATOR))
            tables.view(name, f"SELECT {typed} FROM {quoted(f'_text_{name}')}")
        elif kind == "parquet":
            footers = {path: _footer(path) for path in paths}
            _same_columns(footers)
            below = partitions(paths, footers[paths[0]])
            tables.read(name, "parquet", paths, {}, {}, below)
        else:
            options = _options(kind, given)
            if kind == "csv" and given.header:
                _same_headers(paths, options)
            columns = _sniffed(kind, paths, options)
            unknown = [column for column in given.types if column not in columns]
            if unknown and all_types:
                raise UserError(f"types: {choices(unknown[0], 'a column', columns)}")
            columns |= {column: kind_of for column, kind_of in given.types.items() if column in columns}
            tables.read(name, kind, paths, columns, options, partitions(paths, columns))
    except UserError as error:
        raise file.fault(key, str(error)) from None
    except (duckdb.Error, *tables.faults) as error:
        raise file.fault(key, explained(error)) from None
    return paths


def _format_in(folder: Path) -> Format | None:
    """What a folder holds: a table of a lake, or files of one format."""
    if (folder / "_delta_log").is_dir():
        return "delta"
    if (folder / "metadata").is_dir():
        return "iceberg"
    kinds = {format_of(path.name) for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else set()
    return kinds.pop() if len(kinds) == 1 else None


def _unused(kind: Format | None, given: Input) -> tuple[str, str] | None:
    """A key that this input has no use for, and why."""
    if kind != "csv":
        for name, value in (("separator", given.separator), ("columns", given.columns), ("header", not given.header)):
            if value and not (kind == "atomic" and name == "separator"):
                return name, f"belongs to CSV files; this input is {kind}"
    if kind == "csv" and given.header == (given.columns is not None):
        return "columns", "belongs to every CSV file without a header (header: false), and to no other"
    if given.types and kind not in ("csv", "json"):
        return "types", f"belongs to CSV and JSON; the files of this input ({kind}) hold their types: cast in a view"
    if given.version is not None and kind not in ("delta", "iceberg"):
        return "version", f"belongs to Delta and Iceberg tables; this input is {kind}"
    return None


def _files(kind: Format, locations: Sequence[str], root: str) -> list[str]:
    found = []
    for location in locations:
        folder = Path(join(root, location))
        if kind != "parquet" and folder.is_dir():
            endings = sorted({ending_of(path.name) for path in folder.iterdir() if format_of(path.name) == kind})
            if not endings:
                raise UserError(f"{folder}: holds no files that end as {kind} files do; name them by a glob")
            found += [f"{location}/*.{ending}" for ending in endings]
        else:
            found.append(location)
    try:
        return find_files(found, root)[1]
    except UserError as error:  # which speaks of what training reads
        names = {"schema's root": "recipe's root"} | ({"Parquet file": "file"} if kind != "parquet" else {})
        message = str(error)
        for old, new in names.items():
            message = message.replace(old, new)
        raise UserError(message) from None


def _footer(path: str) -> dict[str, str]:
    try:
        found = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: no readable Parquet file: {_first_line(error)}") from None
    return {name: str(kind) for name, kind in zip(found.names, found.types, strict=True)}


def _same_columns(columns: Mapping[str, Mapping[str, str]]) -> None:
    (first, expected), *others = columns.items()
    for path, found in others:
        missing = [name for name in expected if name not in found] or [name for name in found if name not in expected]
        if missing:
            lacks, has = (path, first) if missing[0] in expected else (first, path)
            raise UserError(f"{lacks} has no column '{missing[0]}', and {has} has one; write both alike")
        for name, kind in expected.items():
            if found[name] != kind:
                raise UserError(
                    f"column '{name}' is {kind} in {first} and {found[name]} in {path}; write both alike, or make two "
                    "inputs and a view that casts one of them"
                )


def _same_headers(paths: Sequence[str], options: Mapping[str, Any]) -> None:
    headers = {}
    for path in paths:
        try:
            with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as stream:
                headers[path] = stream.readline().strip()
        except UnicodeDecodeError:
            raise UserError(f"{path}: is not UTF-8; convert the file, for example: iconv -f latin1 -t utf-8") from None
        if not headers[path]:
            raise UserError(f"{path}: is empty, or its first line is; the first line names the columns")
    first = paths[0]
    for path, header in headers.items():
        if header != headers[first]:
            one, other = (_sniffed("csv", [each], options) for each in (first, path))
            _same_columns({first: dict.fromkeys(one, ""), path: dict.fromkeys(other, "")})
            raise UserError(
                f"{path} begins with {header[:_SHOWN]!r}, and {first} with {headers[first][:_SHOWN]!r}; files of one "
                "input have the same columns in the same order"
            )


def _options(kind: Format, given: Input) -> dict[str, Any]:
    """What DuckDB is told about a CSV file, by the names of its options."""
    if kind != "csv":
        return {}
    options: dict[str, Any] = {"header": given.header}
    if given.separator is not None:
        options["delim"] = given.separator
    if not given.header:
        options["names"] = list(given.columns or ())
    return options


def _sniffed(kind: Format, paths: Sequence[str], options: Mapping[str, Any]) -> dict[str, str]:
    """Column to DuckDB type, as the first rows of some of the files look."""
    reader = {"csv": "read_csv", "json": "read_json"}[kind]
    some = list(paths[:: -(-len(paths) // MOST_SNIFFED)])
    given = {**options, **({"files_to_sniff": -1} if kind == "csv" else {}), "hive_partitioning": False}
    arguments = "".join(f", {name} = {literal(value)}" for name, value in given.items())
    with duckdb.connect() as connection:
        rows = connection.execute(f"DESCRIBE SELECT * FROM {reader}({literal(some)}{arguments})").fetchall()
    return {row[0]: row[1] for row in rows}
