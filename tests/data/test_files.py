"""Finding and opening Parquet files, and what is said when that fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
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
    write(tmp_path / "_region=eu" / "p.parquet")
    write(tmp_path / ".hidden.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("location", "files"),
    [
        ("a.parquet", ["a.parquet"]),
        ("./c.pq", ["c.pq"]),
        (
            ".",
            [
                "_region=eu/p.parquet",
                "a.parquet",
                "b.parquet",
                "day=1/p.parquet",
                "day=2/deep/q.parquet",
                "day=2/p.parquet",
            ],
        ),
        ("day=2/", ["day=2/deep/q.parquet", "day=2/p.parquet"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("[bc].*", ["b.parquet", "c.pq"]),
        ("day=?", ["day=1/p.parquet", "day=2/deep/q.parquet", "day=2/p.parquet"]),
        ("*/p.parquet", ["_region=eu/p.parquet", "day=1/p.parquet", "day=2/p.parquet"]),
        ("_region=eu", ["_region=eu/p.parquet"]),
        ("**/q.parquet", ["day=2/deep/q.parquet"]),
        ("**/p.parquet", ["_region=eu/p.parquet", "day=1/p.parquet", "day=2/p.parquet"]),
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
    stamps = opened("set", here).stamps()
    assert [(s.name, s.size, s.rows) for s in stamps] == [
        (name, (here / name).stat().st_size, rows) for name, rows in (("set/a.parquet", 0), ("set/b.parquet", 7))
    ]
    shutil.copytree(here, there)
    assert opened("set", there).stamps() == opened(str(there / "set"), f"file://{there}").stamps() == stamps
    assert opened(str(there / "set"), here).stamps()[0].name == str(there / "set" / "a.parquet")
    pq.write_table(pq.read_table(here / "set" / "b.parquet").set_column(0, "x", pa.array([*range(6), 7])), there / "x")
    assert opened("x", there).stamps()[0].footer != stamps[1].footer


def test_a_footer_longer_than_the_first_read(tmp_path: Path) -> None:
    names = [f"column_{i:04}" for i in range(1000)]
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "wide.parquet")
    files = opened("wide.parquet", tmp_path)
    whole = (tmp_path / "wide.parquet").read_bytes()
    footer = whole[-8 - int.from_bytes(whole[-8:-4], "little") :]
    assert len(footer) > 65_536
    assert files.stamps() == (FileStamp("wide.parquet", len(whole), 1, sha256(footer).hexdigest()[:16]),)


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


@pytest.mark.parametrize("location", [".", "*.parquet", "lost.parquet"])
def test_a_link_to_nothing_is_named(tmp_path: Path, location: str) -> None:
    write(tmp_path / "train.parquet")
    (tmp_path / "lost.parquet").symlink_to("gone.parquet")
    with pytest.raises(
        UserError, match=r"lost\.parquet: links to 'gone\.parquet', where no file is; correct or remove"
    ):
        opened(location, tmp_path)


def test_folders_that_link_to_one_another_are_read_once_or_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        write(tmp_path / name / f"{name}.parquet", rows=1)
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    with pytest.raises(UserError, match=r"a link leads to .*/a a second time|links to a folder that it lies in"):
        opened("a", tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.parquet").symlink_to(tmp_path / "real" / "a.parquet")
    (tmp_path / "set" / "day").symlink_to(tmp_path / "real")
    assert found("set", tmp_path) == ["set/b.parquet", "set/day/a.parquet"]
    (tmp_path / "set" / "up").symlink_to("..")
    with pytest.raises(UserError, match=r"set/up: links to a folder that it lies in; its files would be read many"):
        opened("set", tmp_path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: is no regular file"):
        opened(".", tmp_path)


@pytest.mark.parametrize("location", ["", " "])
def test_an_empty_location(tmp_path: Path, location: str) -> None:
    write(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"an empty path \(' ?'\) would read everything below '/.*'; name a file"):
        opened(location, tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / os.fsdecode(b"notes\xff.txt")).touch()
    assert found(".", tmp_path) == ["a.parquet"]
    with pytest.raises(UserError, match=r"b\.parquet: no Parquet file is there.* there is: a\.parquet\)"):
        opened("b.parquet", tmp_path)
    (tmp_path / os.fsdecode(b"b\xff.parquet")).touch()
    for location in (".", "*.parquet", os.fsdecode(b"b\xff.parquet")):
        with pytest.raises(UserError, match=r"b'.*/b\\xff\.parquet': the name is not UTF-8; rename it"):
            opened(location, tmp_path)


def test_where_a_relative_path_starts_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        opened("train", "data/shop")
    assert str(error.value) == (
        f"{tmp_path}/data/shop/train: no Parquet file is there; name a file, a folder with .parquet files or a glob "
        f"(in '{tmp_path}/data/shop' there is: nothing); 'train' starts at the schema's root 'data/shop', and that at "
        f"the current folder {tmp_path}: run the command where root lies, or make root an absolute path"
    )
    for location, root in ((f"{tmp_path}/x", "."), ("x", str(tmp_path)), ("x", f"file://{tmp_path}")):
        with pytest.raises(UserError, match=r"there is: nothing\)$"):
            opened(location, root)


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


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_checksums_of_pages_are_verified(tmp_path: Path, version: str) -> None:
    """One bit of a dense value: nothing else would tell."""
    path = tmp_path / "a.parquet"
    table = pa.table({"price": [0.5, 1.5, 2.5]})
    options = {
        "write_page_checksum": True,
        "use_dictionary": False,
        "compression": "none",
        "data_page_version": version,
    }
    pq.write_table(table, path, **options)
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.float64(1.5).tobytes())] ^= 1
    path.write_bytes(bytes(whole))
    files = opened("a.parquet", tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file \(row group 0: .*CRC"):
        files.reader(["price"])(files.row_groups[0])


def _rewritten(path: Path) -> None:
    write(path, rows=99)


def _inverted(path: Path) -> None:
    """Other values, of the same size and statistics."""
    footer, times = opened(path.name, path.parent).stamps(), path.stat()
    table = pq.read_table(path)
    pq.write_table(pa.table({"x": [0, 2, 1, 3], "y": table["y"]}), path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))  # a later write, however quick this test is
    assert opened(path.name, path.parent).stamps() == footer


def _renamed_over(path: Path) -> None:
    times = path.stat()
    write(path.with_name("other"), rows=99)
    os.utime(path.with_name("other"), ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_name("other").rename(path)


def _truncated(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("change", [_rewritten, _inverted, _renamed_over, _truncated, Path.unlink])
@pytest.mark.parametrize("held_open", [True, False])
def test_a_file_that_changes_while_reading(tmp_path: Path, change: Callable[[Path], None], held_open: bool) -> None:
    write(tmp_path / "a.parquet", rows=4)
    files = opened("a.parquet", tmp_path)
    read = files.reader(["x"])
    if held_open:
        read(files.row_groups[0])
    change(tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"a\.parquet changed while reading \(.*\); leave files alone while a run reads"
    ):
        read(files.row_groups[0])


def test_an_object_that_changes_between_openings(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for rows, said in ((4, None), (5, "its footer is another one"), (0, "it is gone")):
        write(tmp_path / "a.parquet", rows=rows)
        memory.pipe("/bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
        if said is None:
            files = opened("memory://bucket/a.parquet", tmp_path)
        elif not rows:
            memory.rm("/bucket", recursive=True)
        if said is not None:
            with pytest.raises(UserError, match=rf"bucket/a\.parquet changed while reading \(.*{said}\)"):
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
