"""The recipe for MovieLens 100k, on made-up files of its layout, and the tool that fetches the real ones."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.layouts import recbole
from tests.support.recipes import prepared
from tools.ml_100k import FOLDER, extract
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.shipped import find_config


def test_science_fiction_is_the_target_and_every_other_film_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recbole(tmp_path / "data" / "ml-100k-raw", "ml-100k", rows=4000)
    shutil.copy(find_config("recipes/ml_100k"), "ml_100k.yaml")
    rows = prepared(Path("ml_100k.yaml"))
    ratings = [line.split("\t") for line in Path("data/ml-100k-raw/ml-100k.inter").read_text().splitlines()[1:]]
    scifi = [float(rating) >= 4 for _, item, rating, _ in ratings if int(item) % 4 == 3]  # films of all four kinds
    assert sum(rows["scifi"].values()) == len(scifi)
    assert sum(rows["other"].values()) == len(ratings) - len(scifi)
    labels = [
        label for split in rows["scifi"] for label in pq.read_table(f"ml_100k/scifi/{split}")["liked"].to_pylist()
    ]
    assert sum(labels) == sum(scifi)
    schema = load_schema(Path("ml_100k/schema.yaml"))
    assert {name: domain.role for name, domain in schema.domains.items()} == {"other": "source", "scifi": "target"}
    assert [task.name for task in schema.tasks] == ["liked@other", "liked@scifi"]


def a_wheel(folder: Path) -> Path:
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for ending in ("inter", "item", "user", "kg"):
            archive.writestr(f"{FOLDER}/ml-100k.{ending}", f"é of {ending}\n")
    return path


def test_three_files_are_taken_out_of_the_wheel(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path)
    extract(wheel, tmp_path / "out" / "raw", hashlib.sha256(wheel.read_bytes()).hexdigest())
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out" / "raw").iterdir()}
    assert found == {f"ml-100k.{ending}": f"é of {ending}\n" for ending in ("inter", "item", "user")}


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recbole-1\.2\.1-py3-none-any\.whl: SHA-256 is [0-9a-f]{64}, not 9c99"):
        extract(a_wheel(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
