"""Tables of a lake: which Parquet files are a Delta Lake or Iceberg table at one version."""
# ruff: noqa: PLC0415 - the extra `lake` may not be installed

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from torchrec_xd.data.filesystems import filesystem_of
from torchrec_xd.data.outages import is_outage
from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import without_secrets

LakeFormat = Literal["delta", "iceberg"]
_OPTIONS = ("region", "scheme", "endpoint_override")
"""Of PyArrow's S3 file system: those that the readers of lake tables have as well."""
_CLIENT = {"timeout": "30s", "max_retries": "3", "retry_timeout": "60s"}
"""Of deltalake's client, which would try for three minutes by itself where a store is silent."""
_LARGEST_VERSION = 2**53
"""Of a Delta table; deltalake searches for a larger one without an end."""


def lake_files(path: str, format: LakeFormat, version: int | None = None) -> tuple[list[str], int]:
    """The Parquet files of a lake table, and the version that they are.

    Args:
        path: folder of the table, or for Iceberg its `….metadata.json`; local or a URI, with options of its store as
            in other locations (`s3://bucket/table?region=…`).
        format: `delta` or `iceberg`.
        version: Delta: version; Iceberg: id of a snapshot. Default: the newest.

    Raises:
        UserError: no such table or version; it has rows or columns that its Parquet files alone do not tell (deletion
            vectors, delete files, renamed or added columns); or the extra `lake` is not installed.
        ConnectionError: its store does not answer.
    """
    place = _Place.of(path)
    files, pinned = _delta(place, version) if format == "delta" else _iceberg(place, version)
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
        Path or URI of the table, its format, and what follows the question mark. None where it is another location.
    """
    scheme, separator, rest = location.partition("://")
    format, plus, other = scheme.partition("+")
    if not separator or format not in ("delta", "iceberg"):
        return None
    path, _, query = rest.rpartition("?") if "?" in rest else (rest, "", "")
    return (f"{other}://{path}" if plus else path), cast(LakeFormat, format), query


def pinned_files(location: str, path: str, format: LakeFormat, query: str) -> list[str]:
    """The files of a table at the version that its location names.

    Raises:
        UserError: it names none, so that what is read would change from day to day; and what `lake_files` refuses.
    """
    without_secrets(location)
    said = [part for part in query.split("&") if part]
    versions = [part.removeprefix("version=") for part in said if part.startswith("version=")]
    options = [part for part in said if not part.startswith("version=")]
    if (versions and not versions[-1].isdecimal()) or len(versions) > 1 or (options and "://" not in path):
        raise UserError(f"{location}: '?{query}' is no version; write {format}://PATH?version=NUMBER")
    path = ("&" if "?" in path else "?").join([path, "&".join(options)]) if options else path
    if versions:
        return lake_files(path, format, int(versions[0]))[0]
    newest = lake_files(path, format)[1]
    what = "version" if format == "delta" else "snapshot"
    mark = "&" if "?" in location else "?"
    raise UserError(
        f"{location}: a table changes, and runs are to be repeated: name its {what}, "
        f"'{location}{mark}version={newest}' for the newest"
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


@dataclass(frozen=True)
class _Place:
    """Where a table lies."""

    shown: str
    """As it was given."""
    path: str
    """Without options of its store."""
    query: str
    """These, with their question mark."""
    options: dict[str, str]
    """The same by name."""

    @staticmethod
    def of(location: str) -> _Place:
        without_secrets(location)
        if "://" not in location or location.startswith("file:"):
            return _Place(location, location, "", {})
        path, question, query = re.sub("^s3[an]://", "s3://", location).partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        options = dict(pairs)
        if len(options) < len(pairs):
            raise UserError(f"{location}: an option is given twice, by 'root' or here; give it once")
        known = _OPTIONS if path.startswith("s3") else ()
        for name in options:
            if name not in known:
                raise UserError(
                    f"{location}: option '{name}' is not known for a lake table; known are: "
                    f"{', '.join(known) or 'none on this store, whose settings come from the environment'}"
                )
        return _Place(location, path, question + query, options)

    @property
    def endpoint(self) -> str:
        """Address of an S3 store of one's own; empty where it is Amazon's."""
        host = self.options.get("endpoint_override", "")
        return host if not host or "://" in host else f"{self.options.get('scheme', 'https')}://{host}"

    def file(self, location: str) -> str:
        """A file of the table as other locations are: PyArrow's schemes and options; local ones without `file:`."""
        if location.startswith("file:"):
            return unquote(urlsplit(location).path)
        if "://" in location:
            return re.sub("^s3[an]://", "s3://", location) + self.query
        return location if Path(location).exists() else unquote(location)

    def failed(self, what: str, error: Exception) -> Exception:
        """What to raise where a table cannot be read."""
        said = re.split(r"\n\s*0: |stack backtrace", str(error))[0]
        text = " ".join(re.sub(r"\x1b\[\d*m|↳", " ", said).split())
        if isinstance(error, OSError) and is_outage(error):
            return ConnectionError(text)
        return UserError(f"{self.shown}: cannot be read as {what}: {text}")


def _missing(place: _Place, package: str) -> UserError:
    return UserError(f"{place.shown}: lake tables need the package {package}: pip install torchrec-xd[lake]")


def _delta(place: _Place, version: int | None) -> tuple[list[str], int]:
    try:
        import deltalake
    except ImportError:
        raise _missing(place, "deltalake") from None
    path = place.shown
    if version is not None and version > _LARGEST_VERSION:
        raise UserError(f"{path}: {version} is no version of a Delta Lake table, whose versions are 0, 1, 2, …")
    settings = {"AWS_REGION": place.options.get("region", ""), "AWS_ENDPOINT_URL": place.endpoint}
    settings |= {"AWS_ALLOW_HTTP": "true"} if place.endpoint.startswith("http:") else {}
    try:
        table = deltalake.DeltaTable(
            place.path,
            version=version,
            storage_options={**_CLIENT, **{name: value for name, value in settings.items() if value}},
        )
        removes = _has_deletion_vectors(table, deltalake.exceptions.DeltaError)
    except (deltalake.exceptions.DeltaError, OSError, ValueError) as error:
        which = "" if version is None else f" at version {version}"
        raise place.failed(f"a Delta Lake table{which}", error) from None
    properties = table.metadata().configuration
    if removes:
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
    uris = map(str, table.file_uris())
    files = [place.file(unquote(uri) if "://" in place.path else uri) for uri in uris]
    _check_columns(path, files, [field.name for field in table.schema().fields])
    return files, int(table.version())


def _has_deletion_vectors(table: Any, errors: type[Exception]) -> bool:
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return False
    try:
        return bool(table.deletion_vectors().read_all().num_rows)
    except (AttributeError, errors):  # an older deltalake, a vector that is lost: better refused than read wrongly
        return True


def _iceberg(place: _Place, version: int | None) -> tuple[list[str], int]:
    try:
        from pyiceberg.exceptions import ValidationError
        from pyiceberg.table import StaticTable
    except ImportError:
        raise _missing(place, "pyiceberg") from None
    path = place.shown
    settings = {"s3.region": place.options.get("region", ""), "s3.endpoint": place.endpoint}
    try:
        table = StaticTable.from_metadata(_metadata(place), {name: value for name, value in settings.items() if value})
        snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
        if snapshot is None:
            known = ", ".join(str(each.snapshot_id) for each in table.snapshots()[-10:]) or "none"
            wanted = "no snapshot" if version is None else f"no snapshot {version}"
            raise UserError(f"{path}: the table has {wanted}; snapshots are: {known}")
        tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    except UserError:
        raise
    except (OSError, ValueError, ValidationError) as error:
        raise place.failed("an Iceberg table", error) from None
    if any(task.delete_files for task in tasks):
        raise UserError(
            f"{path}: rows are deleted by delete files, which the Parquet files do not show; rewrite the table first "
            "(rewrite_data_files), or choose an older 'version'"
        )
    files = [place.file(task.file.file_path) for task in tasks]
    schema = table.schema() if version is None else table.scan(snapshot_id=version).projection()
    _check_columns(path, files, list(schema.column_names))
    return files, snapshot.snapshot_id


def _metadata(place: _Place) -> str:
    """The newest metadata file of a table's folder; another path is one already."""
    filesystem, folder = filesystem_of(place.path + place.query)
    if filesystem.get_file_info(folder).type != fs.FileType.Directory:
        return place.path
    listed = filesystem.get_file_info(fs.FileSelector(f"{folder}/metadata", allow_not_found=True))
    found = [info.base_name for info in listed if info.base_name.endswith(".metadata.json")]
    if not found:
        raise UserError(
            f"{place.shown}: no metadata/*.metadata.json is there; name an Iceberg table's folder or metadata file"
        )
    # By the number in the name: 00002-…, v2.metadata.json.
    newest = max(found, key=lambda name: (int("".join(filter(str.isdigit, name.split("-")[0])) or 0), name))
    return f"{place.path.rstrip('/')}/metadata/{newest}"


def _check_columns(path: str, files: list[str], columns: list[str]) -> None:
    """Refuse what the table knows better than its files: columns that were added, dropped or renamed later."""
    for file in files:
        filesystem, place = filesystem_of(file)
        name = place.rpartition("/")[2]
        try:
            names = pq.read_schema(place, filesystem=filesystem).names
        except FileNotFoundError:
            raise UserError(
                f"{path}: {name} of this version is not there any more (it was vacuumed, or its snapshot expired); "
                "choose a newer 'version'"
            ) from None
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and is_outage(error):
                raise
            raise UserError(f"{path}: {name} cannot be read as Parquet: {error}") from error
        if set(names) != set(columns):
            odd = sorted(set(names) ^ set(columns))[0]
            side = "lacks the table's" if odd in columns else "has a former"
            raise UserError(
                f"{path}: {name} {side} column '{odd}': the table's columns were changed after it was written; "
                "rewrite the table's files, or choose an older 'version'"
            )
