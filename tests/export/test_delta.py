"""Versions that hold only what changed: once completed, they are full exports."""

import copy
import errno
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.support.artifacts import OUTPUTS, copied, set_current, write_artifact
from tests.support.feeds import schema_at, write_feed
from tests.support.served import Served, wait_for
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.export.api import export
from torchrec_xd.export.delta import write_changes
from torchrec_xd.serving.artifact import CHANGES, Artifact
from torchrec_xd.serving.delta import DELTA, TABLES, apply_delta
from torchrec_xd.serving.versions import ServedVersion
from torchrec_xd.settings import validate
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and one that went on with other rows and larger tables."""
    folder = tmp_path_factory.mktemp("delta")

    def config(seed, more_rows=0):
        schema = copy.deepcopy(schema_at(write_feed(folder / f"feed_{seed}", seed=seed)))
        for feature in schema["features"]:
            if feature.get("rows"):
                feature["rows"] += more_rows
        content = {
            "schema": schema,
            "model": {"name": "single", "widths": [8]},
            "domains": ["post"],
            "loader": {"batch_size": 64},
            "trainer": {"threads": 1},
        }
        return validate(RunConfig, content, "test")

    train(config(0), folder / "old")
    train(config(1, more_rows=5), folder / "new", continue_from=folder / "old")
    return folder


@pytest.mark.parametrize("tables", ["fp32", "int8"])
def test_a_delta_is_a_full_export(runs, tmp_path, tables):
    out, whole = tmp_path / "out", tmp_path / "whole"
    export(runs / "old", out, tables=tables)
    changes = export(runs / "new", out, tables=tables, since=1)
    full = export(runs / "new", whole, tables=tables)
    assert changes.version == 2
    assert changes.manifest.since == 1
    assert (changes.folder / DELTA).stat().st_mode & stat.S_IROTH
    own = {DELTA, CHANGES, "manifest.json"}
    names = {path.name for path in full.folder.iterdir()} - own
    here, there = changes.folder, copied(changes, tmp_path / "copy")
    assert not (there / TABLES).exists()
    for folder in (here, Artifact.open(there).folder):
        assert {path.name for path in folder.iterdir()} - own == names
        assert all((folder / n).read_bytes() == (full.folder / n).read_bytes() for n in names)
    assert changes.manifest.tables == full.manifest.tables
    # Another export goes on from it, and from the completed copy.
    for place in (out, tmp_path / "copy"):
        third = export(runs / "new", place, tables=tables, since=2)
        assert not load_file(third.folder / DELTA)["rows:t_user"].size
        third_there = copied(third, tmp_path / "copy_of_third" / place.name)
        assert {path.name for path in third_there.iterdir()} == {DELTA, "manifest.json", "READY"}
        assert (Artifact.open(third_there).folder / TABLES).read_bytes() == (full.folder / TABLES).read_bytes()


def test_a_version_is_whole_where_it_was_exported(runs, tmp_path):
    """So that servers may have the folder mounted without the right to write."""
    export(runs / "old", tmp_path)
    folder = export(runs / "new", tmp_path, since=1).folder

    def state():
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}

    before = state()
    assert ServedVersion.load(folder).number == 2
    assert state() == before


REFUSED = {
    "no such version": ({"since": 7}, "--since 7: no such version below .*; there are: 1"),
    "other tables": ({"since": 1, "tables": "fp16", "max_auc_change": 1}, "tables_dtype is fp32, this one's fp16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_change_of_that_version_is_refused(runs, tmp_path, name):
    arguments, message = REFUSED[name]
    export(runs / "old", tmp_path)
    with pytest.raises(UserError, match=message):
        export(runs / "new", tmp_path, **arguments)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["1"]


def test_tables_that_shrink_are_refused(runs, tmp_path):
    export(runs / "new", tmp_path)
    with pytest.raises(UserError, match=r"--since 1: table 't_\w+' has \d+ rows, fewer than the \d+ of that version"):
        export(runs / "old", tmp_path, since=1)


def delta_of(out, version, change):
    """A version that was copied as changes since the one before, by hand."""
    folder = write_artifact(out, version, current=False)
    tables = load_file(folder / TABLES)
    change(tables)
    save_file(tables, folder / TABLES)
    base = Artifact.open(out / "versions" / str(version - 1))
    for name in ("manifest.json", "READY"):
        (folder / name).unlink()
    files, changed = write_changes(folder, base)
    for name in set(files) - set(changed):
        (folder / name).unlink()
    (folder / "READY").touch()
    manifest = base.manifest.model_copy(update={"files": files, "since": version - 1})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


@pytest.fixture
def folder(tmp_path):
    """Version 2, of changes in three rows of one table that no row of the sample reads."""
    write_artifact(tmp_path, 1)

    def change(tables):
        tables["t_item"][[40, 45, 49]] += 1

    return delta_of(tmp_path, 2, change)


def test_only_rows_that_differ_are_written(folder):
    delta = load_file(folder / DELTA)
    assert delta["rows:t_item"].tolist() == [40, 45, 49]
    assert delta["values:t_item"].shape == (3, 4)
    assert not delta["rows:t_user"].size


def test_a_server_takes_it_over(folder):
    out = folder.parent.parent
    set_current(out, 1)
    body = {"request": {"user": 7, "hist": [1, 2, 3]}, "candidates": {"item": [45, 1], "price": [0, 0]}}
    with Served(out) as served:
        before = served.client.post("/score", json=body).json()
        set_current(out, 2)
        wait_for(lambda: bool(served.events("version taken over")))
        after = served.client.post("/score", json=body).json()
    assert (before["version"], after["version"]) == (1, 2)
    part = OUTPUTS[1]
    # All four numbers of a row grew by 1.
    np.testing.assert_allclose(after["scores"][part], np.add(before["scores"][part], [4, 0]), rtol=1e-6)


def lost(folder):
    shutil.rmtree(folder.parent / "1")


def another_base(folder):
    tables = load_file(folder.parent / "1" / TABLES)
    tables["t_user"][0] += 1
    save_file(tables, folder.parent / "1" / TABLES)


def cut_short(folder):
    path = folder / DELTA
    path.write_bytes(path.read_bytes()[:-8])


DAMAGE = {
    "lost": (lost, "holds what changed since version 1, and .*1 is not there"),
    "another base": (another_base, "2/tables.safetensors: cannot be made from .*1: a file of one of the two"),
    "cut short": (cut_short, "tables.delta.safetensors: not a readable safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_completed_is_refused(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError, match=message):
        Artifact.open(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", [DELTA, "../1/tables.safetensors", "../1/net.onnx"])
def test_it_is_completed_once_files_that_were_still_being_copied_are_there(folder, name):
    """Some tools write a file in its place: it has its size before its content."""
    path = folder / name
    whole = path.read_bytes()
    late = load_file(path)["values:t_item"].tobytes() if path.name == DELTA else whole[-8:]
    path.write_bytes(whole.replace(late, bytes(len(late))))
    with pytest.raises(UserError, match="cut short or changed"):
        Artifact.open(folder)
    path.write_bytes(whole)
    assert Artifact.open(folder).version == 2


def test_several_complete_it_at_once(folder):
    whole = Artifact.open(folder).folder / TABLES
    expected = whole.read_bytes()
    for _ in range(5):
        whole.unlink()
        with ThreadPoolExecutor(8) as threads:
            for opened in [threads.submit(Artifact.open, folder) for _ in range(8)]:
                assert opened.result().folder == folder
        assert whole.read_bytes() == expected
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_written_is_told(folder, monkeypatch):
    """A read-only file system says so at every call, even where there is nothing to remove."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(folder), "unlink", refuse)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match=r"Read-only file system.; a version of changes needs a folder that can be wr"):
        Artifact.open(folder)


def test_a_full_disk_is_told(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"cannot be made from .*1 .No space left on device.; a version of changes needs"
    ):
        Artifact.open(folder)
    assert not list(folder.glob(".*"))


@given(
    st.integers(1, 20),
    st.integers(0, 6),
    st.lists(st.integers(0, 19), max_size=8),
    st.sampled_from([np.float32, np.float16, np.uint8]),
)
def test_any_change_is_applied(tmp_path_factory, rows, more, changed, dtype):
    place = tmp_path_factory.mktemp("any")
    write_artifact(place, 1)
    values = np.random.default_rng(rows).integers(0, 200, size=(rows + more, 3)).astype(dtype)
    other = np.arange(rows + more).astype(np.float16)
    before = {"b": values[:rows].copy(), "a": other[:rows]}
    before["b"][[i for i in changed if i < rows]] += 1
    base = place / "versions" / "1"
    save_file(before, base / TABLES)
    folder = place / "versions" / "2"
    folder.mkdir()
    save_file({"b": values, "a": other}, folder / TABLES)
    whole = (folder / TABLES).read_bytes()
    write_changes(folder, Artifact.open(base, check=False))
    delta = load_file(folder / DELTA)
    assert set(delta["rows:b"].tolist()) == {i for i in changed if i < rows} | set(range(rows, rows + more))
    apply_delta(folder / DELTA, base / TABLES, place / TABLES)
    assert (place / TABLES).read_bytes() == whole
