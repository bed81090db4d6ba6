"""Lake tables: their Parquet files at a version; what the files alone do not tell is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from torchrec_xd.data.lake import lake_files, lake_format
from torchrec_xd.data.locations import find_files
from torchrec_xd.errors import UserError

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("pyiceberg")


def rows_of(files: list[str]) -> list[int]:
    return sorted(value for file in files for value in pq.read_table(file)["a"].to_pylist())


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """Version 0: 1, 2. Version 1: also 3. Version 2: 9 only."""
    folder = tmp_path / "delta table"
    deltalake.write_deltalake(folder, pa.table({"a": [1, 2]}))
    deltalake.write_deltalake(folder, pa.table({"a": [3]}), mode="append")
    deltalake.write_deltalake(folder, pa.table({"a": [9]}), mode="overwrite")
    return folder


@pytest.mark.parametrize(
    ("version", "rows", "pinned"), [(0, [1, 2], 0), (1, [1, 2, 3], 1), (2, [9], 2), (None, [9], 2)]
)
def test_delta_at_a_version(delta: Path, version: int | None, rows: list[int], pinned: int) -> None:
    files, found = lake_files(str(delta), "delta", version)
    assert (rows_of(files), found) == (rows, pinned)


@pytest.mark.parametrize(("version", "rows"), [(0, [1, 2]), (2, [9])])
def test_a_split_may_be_a_delta_table_at_a_version(delta: Path, version: int, rows: list[int]) -> None:
    for location, root in ((f"delta://{delta}", "/"), (f"delta://{delta.name}", str(delta.parent))):
        filesystem, files = find_files([f"{location}?version={version}"], root)
        assert isinstance(filesystem, fs.LocalFileSystem)
        assert rows_of(files) == rows


def test_a_table_without_a_version_is_refused(delta: Path) -> None:
    with pytest.raises(UserError, match=r"name its version, 'delta://delta table\?version=2' for the newest"):
        find_files(["delta://delta table"], str(delta.parent))
    with pytest.raises(UserError, match=r"'\?at=2' is no version; write delta://PATH\?version=NUMBER"):
        find_files(["delta://delta table?at=2"], str(delta.parent))


def test_a_table_that_is_read_as_a_plain_folder_is_refused(delta: Path) -> None:
    """Its files also hold what was deleted: 1, 2 and 3 here."""
    (delta / "part").mkdir()
    pq.write_table(pa.table({"a": [1]}), delta / "part" / "a.parquet")
    for location in (delta, delta.parent, f"{delta}/*.parquet", f"file://{delta}", delta / "part"):
        with pytest.raises(UserError, match=r"is a Delta Lake table, whose files also hold rows that were deleted"):
            find_files([str(location)], "/")
    file = delta / "part" / "a.parquet"
    assert find_files([str(file)], "/")[1] == [str(file)]  # whoever names a file means it


def test_a_delta_version_that_is_not_there(delta: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read as a Delta Lake table at version 7"):
        lake_files(str(delta), "delta", 7)


def test_a_version_whose_files_were_vacuumed(delta: Path) -> None:
    deltalake.DeltaTable(delta).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(UserError, match=r"\.parquet of this version is not there any more .* choose a newer 'version'"):
        lake_files(str(delta), "delta", 0)


def test_a_damaged_file_is_named(delta: Path) -> None:
    (file,), _ = lake_files(str(delta), "delta", 2)
    Path(file).write_bytes(b"junk")
    with pytest.raises(UserError, match=rf"delta table: {Path(file).name} cannot be read as Parquet: "):
        lake_files(str(delta), "delta", 2)


def test_a_damaged_log_is_told_in_one_sentence(delta: Path) -> None:
    (delta / "_delta_log" / f"{2:020d}.json").write_text("{junk")
    with pytest.raises(UserError, match="cannot be read as a Delta Lake table: ") as error:
        lake_files(str(delta), "delta")
    assert "start_thread" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_number_of_a_snapshot_is_no_version_of_delta(delta: Path) -> None:
    """deltalake would search for it without an end."""
    with pytest.raises(UserError, match="3300011300959285583 is no version of a Delta Lake table"):
        lake_files(str(delta), "delta", 3300011300959285583)


def test_a_folder_with_a_question_mark(delta: Path) -> None:
    folder = delta.rename(delta.with_name("a?b"))
    assert rows_of(find_files([f"delta://{folder}?version=0"], "/")[1]) == [1, 2]


def test_no_delta_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a Delta Lake table"):
        lake_files(str(tmp_path), "delta")


def test_delta_deletes_that_rewrite_files_are_seen(delta: Path) -> None:
    deltalake.write_deltalake(delta, pa.table({"a": [10, 11]}), mode="append")
    deltalake.DeltaTable(delta).delete("a = 10")
    assert rows_of(lake_files(str(delta), "delta")[0]) == [9, 11]


def test_a_column_that_was_added_later_is_refused(delta: Path) -> None:
    deltalake.write_deltalake(delta, pa.table({"a": [4], "b": [5]}), mode="append", schema_mode="merge")
    with pytest.raises(UserError, match=r"lacks the table's column 'b'.*rewrite the table's files.*older 'version'"):
        lake_files(str(delta), "delta")
    assert lake_files(str(delta), "delta", 2)[1] == 2


def test_a_partitioned_delta_table_is_refused(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "t", pa.table({"a": [1, 2], "day": [1, 2]}), partition_by=["day"])
    with pytest.raises(UserError, match=r"partitioned by day, and its Parquet files lack these columns"):
        lake_files(str(tmp_path / "t"), "delta")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("configuration", "delta.columnMapping.mode", "name"), r"column mapping \(name\)"),
        (("deletion vector",), "deletion vectors"),
    ],
)
def test_what_delta_files_do_not_tell_is_refused(delta: Path, change: tuple[str, ...], reason: str) -> None:
    log = delta / "_delta_log" / "00000000000000000003.json"
    lines = _delta_changes(delta, change)
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=reason):
        lake_files(str(delta), "delta")
    assert rows_of(lake_files(str(delta), "delta", 2)[0]) == [9]


def _delta_changes(delta: Path, change: tuple[str, ...]) -> list[str]:
    """Log entries as other writers make them: a protocol of newer features, and what uses them."""
    import json

    entries = [
        json.loads(line)
        for file in sorted((delta / "_delta_log").glob("*.json"))
        for line in file.read_text().splitlines()
    ]
    feature = "columnMapping" if change[0] == "configuration" else "deletionVectors"
    protocol: dict[str, Any] = {"minReaderVersion": 3, "minWriterVersion": 7}
    protocol |= {"readerFeatures": [feature], "writerFeatures": [feature]}
    made: list[dict[str, Any]] = [{"protocol": protocol}]
    if change[0] == "configuration":
        meta = next(entry["metaData"] for entry in entries if "metaData" in entry)
        meta["configuration"] = {change[1]: change[2], "delta.columnMapping.maxColumnId": "1"}
        schema = json.loads(meta["schemaString"])
        for i, field in enumerate(schema["fields"]):
            field["metadata"] = {"delta.columnMapping.id": i + 1, "delta.columnMapping.physicalName": field["name"]}
        meta["schemaString"] = json.dumps(schema)
        made.append({"metaData": meta})
    else:
        add = [entry["add"] for entry in entries if "add" in entry][-1]
        made.append({"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}})
        vector = {"storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1, "sizeInBytes": 36}
        made.append({"add": {**add, "deletionVector": {**vector, "cardinality": 1}}})
    return [json.dumps(entry) for entry in made]


@pytest.fixture
def iceberg(tmp_path: Path) -> Any:
    """A table of two snapshots, 1 2 and then also 3, in a catalog of a SQLite file."""
    pytest.importorskip("sqlalchemy")
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.log", pa.schema([("a", pa.int64())]))
    table.append(pa.table({"a": [1, 2]}))
    table.append(pa.table({"a": [3]}))
    return table


def folder_of(table: Any) -> str:
    return str(table.location()).removeprefix("file://")


def test_iceberg_at_a_snapshot(iceberg: Any) -> None:
    first, second = (snapshot.snapshot_id for snapshot in iceberg.snapshots())
    files, pinned = lake_files(folder_of(iceberg), "iceberg")
    assert (rows_of(files), pinned) == ([1, 2, 3], second)
    files, pinned = lake_files(folder_of(iceberg), "iceberg", first)
    assert (rows_of(files), pinned) == ([1, 2], first)
    files, pinned = lake_files(iceberg.metadata_location, "iceberg")
    assert rows_of(files) == [1, 2, 3]


def test_a_split_may_be_an_iceberg_table_at_a_snapshot(iceberg: Any) -> None:
    first = iceberg.snapshots()[0].snapshot_id
    assert rows_of(find_files([f"iceberg://{folder_of(iceberg)}?version={first}"], "/")[1]) == [1, 2]
    with pytest.raises(
        UserError, match=r"is an Iceberg table, whose files also hold .* iceberg://PATH\?version=NUMBER"
    ):
        find_files([folder_of(iceberg)], "/")


def test_an_iceberg_snapshot_that_is_not_there(iceberg: Any) -> None:
    known = iceberg.snapshots()[0].snapshot_id
    with pytest.raises(UserError, match=rf": the table has no snapshot 5; snapshots are: {known}"):
        lake_files(folder_of(iceberg), "iceberg", 5)


def test_an_iceberg_table_without_rows(tmp_path: Path, iceberg: Any) -> None:
    table = iceberg.catalog.create_table("shop.empty", pa.schema([("a", pa.int64())]))
    with pytest.raises(UserError, match="the table has no snapshot"):
        lake_files(folder_of(table), "iceberg")


def test_iceberg_columns_that_were_changed_are_refused(iceberg: Any) -> None:
    with iceberg.update_schema() as update:
        update.rename_column("a", "b")
    with pytest.raises(UserError, match=r"column 'a'.*the table's columns were changed"):
        lake_files(folder_of(iceberg), "iceberg")


def test_iceberg_delete_files_are_refused(iceberg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyIceberg writes no delete files, so the plan is given one.
    from pyiceberg.table import DataScan, FileScanTask

    plan = DataScan.plan_files

    def with_deletes(scan: Any) -> Any:
        return [FileScanTask(task.file, delete_files={task.file}) for task in plan(scan)]

    monkeypatch.setattr(DataScan, "plan_files", with_deletes)
    with pytest.raises(UserError, match=r"delete files, which the Parquet files do not show.*rewrite_data_files"):
        lake_files(folder_of(iceberg), "iceberg")


@pytest.mark.parametrize(("kind", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, kind: Any, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"lake tables need the package {package}: pip install torchrec-xd\[lake\]"):
        lake_files("table", kind)


def test_what_kind_of_table_a_folder_is(delta: Path, iceberg: Any, tmp_path: Path) -> None:
    assert lake_format(delta) == "delta"
    assert lake_format(Path(folder_of(iceberg))) == "iceberg"
    assert lake_format(tmp_path) is None
