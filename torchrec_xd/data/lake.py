"""Tables of a lake: which Parquet files are a Delta Lake or Iceberg table at one version."""
# ruff: noqa: PLC0415 - the extra `lake` may not be installed

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
from fsspec.core import open_files  # type: ignore[import-untyped]
from pyarrow import fs

from torchrec_xd.errors import UserError

LakeFormat = Literal["delta", "iceberg"]


def lake_files(path: str, format: LakeFormat, version: int | None = None) -> tuple[list[str], int]:
    """The Parquet files of a lake table, and the version that they are.

    Args:
        path: folder of the table, or for Iceberg its `….metadata.json`; local or a URI.
        format: `delta` or `iceberg`.
        version: Delta: version; Iceberg: id of a snapshot. Default: the newest.

    Raises:
        UserError: no such table or version; it has rows or columns that its Parquet files alone do not tell (deletion
            vectors, delete files, renamed or added columns); or the extra `lake` is not installed.
    """
    files, pinned = _delta(path, version) if format == "delta" else _iceberg(path, version)
    if not files:
        raise UserError(f"{path}: version {pinned} of this table has no rows; choose another with 'version'")
    return sorted(files), pinned


def lake_format(path: Path) -> LakeFormat | None:
    """What kind of lake table a local folder is; None where it is none."""
    if (path / "_delta_log").is_dir():
        return "delta"
    if any((path / "metadata").glob("*.metadata.json")):
        return "iceberg"
    return None


def lake_location(location: str) -> tuple[str, LakeFormat, str] | None:
    """What `delta://PATH?version=N` and `iceberg://PATH?version=N` name; `delta+s3://…` where it lies elsewhere.

    Returns:
        Path or URI of the table, its format, and what is said of the version. None where it is another location.
    """
    scheme, separator, rest = location.partition("://")
    format, plus, other = scheme.partition("+")
    if not separator or format not in ("delta", "iceberg"):
        return None
    path, _, query = rest.partition("?")
    return (f"{other}://{path}" if plus else path), cast(LakeFormat, format), query


def pinned_files(location: str, path: str, format: LakeFormat, query: str) -> list[str]:
    """The files of a table at the version that its location names.

    Raises:
        UserError: it names none, so that what is read would change from day to day; and what `lake_files` refuses.
    """
    key, _, value = query.partition("=")
    if key == "version" and value.isdecimal():
        return lake_files(path, format, int(value))[0]
    if query:
        raise UserError(f"{location}: '?{query}' is no version; write {format}://PATH?version=NUMBER")
    newest = lake_files(path, format)[1]
    what = "version" if format == "delta" else "snapshot"
    raise UserError(
        f"{location}: a table changes, and runs are to be repeated: name its {what}, '{location}?version={newest}' for "
        "the newest"
    )


def refuse_table_folder(filesystem: fs.FileSystem, folder: str, files: Iterable[str]) -> None:
    """Refuse a folder of a lake table that is read as a plain one.

    Args:
        filesystem: of both.
        folder: that was named; it may lie in that of the table.
        files: at any depth below it.

    Raises:
        UserError: it is one; its files also hold rows that were deleted or replaced.
    """
    found: LakeFormat | None = None
    for file in files:
        below = file[len(folder) :].strip("/").split("/")
        if "_delta_log" in below[:-1]:
            found = "delta"
        elif below[-1].endswith(".metadata.json") and below[-2:-1] == ["metadata"]:
            found = "iceberg"
    above = [str(parent) for parent in PurePosixPath(folder).parents if len(parent.parts) > 1]
    logs = filesystem.get_file_info([f"{parent}/_delta_log" for parent in above])
    if any(info.type == fs.FileType.Directory for info in logs):
        found = "delta"
    if found is not None:
        name = {"delta": "a Delta Lake table", "iceberg": "an Iceberg table"}[found]
        raise UserError(
            f"{folder}: is {name}, whose files also hold rows that were deleted or replaced; name it as "
            f"{found}://PATH?version=NUMBER"
        )


def _missing(path: str, package: str) -> UserError:
    return UserError(f"{path}: lake tables need the package {package}: pip install torchrec-xd[lake]")


def _plain(location: str) -> str:
    """A local path without `file:` and %20; other URIs as they are."""
    if location.startswith("file:"):
        return unquote(urlsplit(location).path)
    return location if "://" in location or Path(location).exists() else unquote(location)


def _delta(path: str, version: int | None) -> tuple[list[str], int]:
    try:
        import deltalake
    except ImportError:
        raise _missing(path, "deltalake") from None
    try:
        table = deltalake.DeltaTable(path, version=version)
    except (deltalake.exceptions.DeltaError, OSError, ValueError) as error:
        which = "" if version is None else f" at version {version}"
        raise UserError(f"{path}: cannot be read as a Delta Lake table{which}: {_first_line(error)}") from None
    features = set(table.protocol().reader_features or ())
    properties = table.metadata().configuration
    if "deletionVectors" in features and _has_deletion_vectors(table, deltalake.exceptions.DeltaError):
        raise UserError(
            f"{path}: rows are deleted by deletion vectors, which the Parquet files do not show; rewrite the table "
            "(REORG TABLE … APPLY (PURGE)), or choose an older 'version'"
        )
    if properties.get("delta.columnMapping.mode", "none") != "none":
        raise UserError(
            f"{path}: column mapping ({properties['delta.columnMapping.mode']}) gives columns other names than the "
            "Parquet files do; write the table anew without it"
        )
    if table.metadata().partition_columns:
        listed = ", ".join(table.metadata().partition_columns)
        raise UserError(
            f"{path}: the table is partitioned by {listed}, and its Parquet files lack these columns; write it anew "
            "without partitions"
        )
    files = [_plain(str(uri)) for uri in table.file_uris()]
    _check_columns(path, files, [field.name for field in table.schema().fields])
    return files, int(table.version())


def _has_deletion_vectors(table: Any, errors: type[Exception]) -> bool:
    try:
        return bool(table.deletion_vectors().read_all().num_rows)
    except (AttributeError, errors):  # an older deltalake, a vector that is lost: better refused than read wrongly
        return True


def _iceberg(path: str, version: int | None) -> tuple[list[str], int]:
    try:
        from pyiceberg.exceptions import ValidationError
        from pyiceberg.table import StaticTable
    except ImportError:
        raise _missing(path, "pyiceberg") from None
    try:
        table = StaticTable.from_metadata(_metadata(path))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{path}: cannot be read as an Iceberg table: {_first_line(error)}") from None
    snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
    if snapshot is None:
        known = ", ".join(str(each.snapshot_id) for each in table.snapshots()[-10:]) or "none"
        wanted = "no snapshot" if version is None else f"no snapshot {version}"
        raise UserError(f"{path}: the table has {wanted}; snapshots are: {known}")
    tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    if any(task.delete_files for task in tasks):
        raise UserError(
            f"{path}: rows are deleted by delete files, which the Parquet files do not show; rewrite the table first "
            "(rewrite_data_files), or choose an older 'version'"
        )
    files = [_plain(task.file.file_path) for task in tasks]
    schema = table.schema() if version is None else table.scan(snapshot_id=version).projection()
    _check_columns(path, files, list(schema.column_names))
    return files, snapshot.snapshot_id


def _metadata(path: str) -> str:
    """The newest metadata file of a table's local folder; another path is one already."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    found = list((folder / "metadata").glob("*.metadata.json"))
    if not found:
        raise UserError(
            f"{path}: no metadata/*.metadata.json is there; name an Iceberg table's folder or metadata file"
        )
    # By the number in the name: 00002-…, v2.metadata.json.
    return str(
        max(found, key=lambda file: (int("".join(filter(str.isdigit, file.name.split("-")[0])) or 0), file.name))
    )


def _check_columns(path: str, files: list[str], columns: list[str]) -> None:
    """Refuse what the table knows better than its files: columns that were added, dropped or renamed later."""
    for file in files:
        with open_files([file])[0] as stream:
            names = pq.ParquetFile(stream).schema_arrow.names
        if set(names) != set(columns):
            odd = sorted(set(names) ^ set(columns))[0]
            side = "lacks the table's" if odd in columns else "has a former"
            raise UserError(
                f"{path}: {file.rpartition('/')[2]} {side} column '{odd}': the table's columns were changed after it "
                "was written; rewrite the table's files, or choose an older 'version'"
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
