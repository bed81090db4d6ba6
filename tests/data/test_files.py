"""Finding and opening Parquet files, and what is said when that fails."""

from __future__ import annotations

import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_xd.data.files import FileStamp, ParquetFiles
from torchrec_xd.errors import UserError


def write(path: Path, rows: int = 3, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": list(range(rows)), "y": [str(path)] * rows}), path, **options)


def opened(location: str, root: Path | str) -> ParquetFiles:
    return ParquetFiles([location], str(root), lambda file, schema: None)


def found(location: str, root: Path) -> list[str]:
    files = dict.fromkeys(group.file for group in opened(location, root).row_groups)
    return [str(Path(file).relative_to(root)) for file in files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.parquet", "a.parquet", "day=1/p.parquet", "day=2/p.parquet", "day=2/deep/q.parquet", "c.pq"):
        write(tmp_path / name)
    (tmp_path / "day=1" / "_SUCCESS").touch()
    (tmp_path / "day=1" / "notes.txt").write_text("no Parquet")
    write(tmp_path / "_temporary" / "half.parquet")
    write(tmp_path / ".hidden.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("location", "files"),
    [
        ("a.parquet", ["a.parquet"]),
        ("./c.pq", ["c.pq"]),
        (".", ["a.parquet", "b.parquet", "day=1/p.parquet", "day=2/deep/q.parquet", "day=2/p.parquet"]),
        ("day=2/", ["day=2/deep/q.parquet", "day=2/p.parquet"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("[bc].*", ["b.parquet", "c.pq"]),
        ("day=?", ["day=1/p.parquet", "day=2/deep/q.parquet", "day=2/p.parquet"]),
        ("*/p.parquet", ["day=1/p.parquet", "day=2/p.parquet"]),
        ("**/q.parquet", ["day=2/deep/q.parquet"]),
        ("**/p.parquet", ["day=1/p.parquet", "day=2/p.parquet"]),
        ("**/a.parquet", ["a.parquet"]),
    ],
)
def test_files_folders_and_globs(tree: Path, location: str, files: list[str]) -> None:
    assert found(location, tree) == files
    assert found(str(tree / location), tree) == files
    assert found(f"file://{tree}/{location.removeprefix('.')}".replace("?", "*"), tree) == files


def test_a_name_with_glob_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a[1].parquet")
    write(tmp_path / "day [x]" / "p.parquet")
    assert found("a[1].parquet", tmp_path) == ["a[1].parquet"]
    assert found("day [x]", tmp_path) == ["day [x]/p.parquet"]


def test_a_root_that_is_a_uri(tree: Path) -> None:
    assert [group.file for group in opened("*.parquet", f"file://{tree}").row_groups] == [
        f"{tree}/a.parquet",
        f"{tree}/b.parquet",
    ]


def test_a_file_system_that_only_fsspec_knows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows=4)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/set/a.parquet", (tmp_path / "a.parquet").read_bytes())
    files = opened("memory://bucket/set/*.parquet", tmp_path)
    assert files.reader(["x"])(files.row_groups[0]).to_pydict() == {"x": [0, 1, 2, 3]}
    memory.rm("/bucket", recursive=True)


def test_row_groups_know_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows=0)
    write(tmp_path / "b.parquet", rows=7, row_group_size=3)
    groups = opened(".", tmp_path).row_groups
    assert [(Path(g.file).name, g.index, g.first_row, g.rows) for g in groups] == [
        ("b.parquet", 0, 0, 3),
        ("b.parquet", 1, 3, 3),
        ("b.parquet", 2, 6, 1),
    ]


def test_stamps_say_name_size_rows_and_footer_and_travel_with_a_copy(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here / "set" / "a.parquet", rows=0)
    write(here / "set" / "b.parquet", rows=7, row_group_size=3)
    stamps = opened("set", here).stamps
    assert [(s.name, s.size, s.rows) for s in stamps] == [
        (name, (here / name).stat().st_size, rows) for name, rows in (("set/a.parquet", 0), ("set/b.parquet", 7))
    ]
    shutil.copytree(here, there)
    assert opened("set", there).stamps == opened(str(there / "set"), f"file://{there}").stamps == stamps
    assert opened(str(there / "set"), here).stamps[0].name == str(there / "set" / "a.parquet")
    pq.write_table(pq.read_table(here / "set" / "b.parquet").set_column(0, "x", pa.array([*range(6), 7])), there / "x")
    assert opened("x", there).stamps[0].footer != stamps[1].footer


def test_a_footer_longer_than_the_first_read(tmp_path: Path) -> None:
    names = [f"column_{i:04}" for i in range(1000)]
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "wide.parquet")
    files = opened("wide.parquet", tmp_path)
    whole = (tmp_path / "wide.parquet").read_bytes()
    footer = whole[-8 - int.from_bytes(whole[-8:-4], "little") :]
    assert len(footer) > 65_536
    assert files.stamps == (FileStamp("wide.parquet", len(whole), 1, sha256(footer).hexdigest()[:16]),)


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "x.y": [2], "z": [3]}), tmp_path / "a.parquet")
    files = opened("a.parquet", tmp_path)
    assert files.reader(["x.y", "absent"])(files.row_groups[0]).to_pydict() == {"x.y": [2]}


def test_no_location_is_no_files(tmp_path: Path) -> None:
    assert ParquetFiles([], str(tmp_path), lambda file, schema: None).row_groups == ()


@pytest.mark.parametrize("location", ["trian.parquet", "trian.*", "nowhere/x.parquet", "train.parquet/x", "empty"])
def test_nothing_there(tmp_path: Path, location: str) -> None:
    write(tmp_path / "train.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=location.replace("*", r"\*")):
        opened(location, tmp_path)


def test_nothing_there_names_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"did you mean 'train\.parquet'\?.* there is: train\.parquet\)"):
        opened("trian.parquet", tmp_path)


def test_an_unknown_file_system(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither PyArrow \(.*\) nor fsspec \(.*\) can open a file system 'nosuch'"):
        opened("nosuch://bucket/x.parquet", tmp_path)


@pytest.mark.parametrize("location", ["s3://bucket/x.parquet?regoin=eu-west-1", "gs://bucket/x.parquet?bogus=1"])
def test_an_option_that_a_known_file_system_refuses_is_told_and_not_handed_on(tmp_path: Path, location: str) -> None:
    """fsspec would take the option for a part of the file's name."""
    refused = r"Unexpected query parameter in \w+ URI: '(regoin|bogus)'; correct what follows"
    with pytest.raises(UserError, match=refused):
        opened(location, tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user,item\n1,2\n"])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.parquet: not a readable Parquet file \(footer: "):
        opened(".", tmp_path)


def test_a_truncated_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows=1000)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        opened("a.parquet", tmp_path)


def test_damaged_pages_are_named_when_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows=1000)
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    whole[4:600] = bytes(596)
    (tmp_path / "a.parquet").write_bytes(bytes(whole))
    files = opened("a.parquet", tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file \(row group 0: "):
        files.reader(["x"])(files.row_groups[0])


def test_several_locations_in_their_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        pq.write_table(pa.table({"x": [1]}), tmp_path / f"{name}.parquet")
    files = ParquetFiles(["b.parquet", "a.parquet"], str(tmp_path), lambda file, schema: None)
    assert [Path(group.file).name for group in files.row_groups] == ["b.parquet", "a.parquet"]
    with fsspec.open("memory://far.parquet", "wb") as far:
        pq.write_table(pa.table({"x": [1]}), far)
    with pytest.raises(UserError, match="on another file system"):
        ParquetFiles(["a.parquet", "memory://far.parquet"], str(tmp_path), lambda file, schema: None)


@pytest.mark.parametrize("location", ["hf://datasets/a/b.parquet", "fsspec+nosuch://b/c.parquet"])
def test_a_file_system_whose_package_is_missing(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyArrow answers some schemes with what Python says of a missing package."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"neither PyArrow \(.*\) nor fsspec \(.*\) can open a file system"):
        ParquetFiles((location,), "", lambda file, schema: None)
