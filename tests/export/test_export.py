"""From a run to an artefact: the same scores, whole or not at all, refused where it is not as it was written."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import with_kinds, write_kinds
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.export import api
from torchrec_xd.export.api import export
from torchrec_xd.export.narrow import narrowed
from torchrec_xd.serving.artifact import Artifact, TableEntry, current_version
from torchrec_xd.serving.batch_scoring import ScoreOptions, score_by_artifact
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.serving.tables import Tables
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import score
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    content = {
        "schema": {**with_kinds(schema_at(write_kinds(write_feed(folder / "feed"))), specific="post"), "dim": 32},
        "model": {"name": "single", "widths": [8]},
        "domains": ["post"],
        "embeddings": {"init_std": 0.5},
        "loader": {"batch_size": 64},
        "trainer": {"threads": 1},
    }
    train(validate(RunConfig, content, "test"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def out(run):
    export(run, run.parent / "out")
    return run.parent / "out"


@pytest.fixture
def copy(out, tmp_path):
    """A version that a test may damage."""
    return shutil.copytree(current_version(out), tmp_path / "1")


def test_an_artefact_writes_what_score_writes(run, out, tmp_path):
    rows = run.parent / "feed" / "post" / "test.parquet"
    count = score(run, rows, tmp_path / "run.parquet", "post", parts=True, keep=["hour"])
    options = ScoreOptions(parts=True, keep={"hour": "hour"})
    assert score_by_artifact(out, rows, tmp_path / "artefact.parquet", options) == count == 200
    ours, theirs = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("artefact", "run"))
    assert ours.schema == theirs.schema
    assert ours.select(["user", "hour"]).equals(theirs.select(["user", "hour"]))
    for name in ("prob_click@post", "score_click@post"):
        np.testing.assert_allclose(ours[name].to_numpy(), theirs[name].to_numpy(), rtol=0, atol=1e-6)


def test_several_processes_write_the_same(run, out, tmp_path):
    rows = run.parent / "feed" / "post" / "test.parquet"
    for workers in (1, 2):
        score_by_artifact(out, rows, tmp_path / f"{workers}.parquet", ScoreOptions(workers=workers))
    assert pq.read_table(tmp_path / "1.parquet").equals(pq.read_table(tmp_path / "2.parquet"))


def test_an_artefact_says_what_it_is_and_carries_its_sample(run, out):
    artifact = Artifact.open(current_version(out))
    manifest = artifact.manifest
    assert (artifact.version, manifest.model, manifest.run, manifest.domain) == (1, "single", "run", "post")
    assert manifest.difference <= manifest.tolerance == 1e-6
    assert manifest.outputs == manifest.tasks == ("click@post",)
    assert str(run.parent) not in (artifact.folder / "schema.yaml").read_text()
    rows, outputs = artifact.sample()
    assert rows.num_rows == outputs.num_rows == 256
    assert outputs.column_names == ["click@post"]
    assert "click" not in rows.column_names


def test_narrow_tables_are_small_and_their_change_is_measured(run, out, tmp_path):
    sizes = {"fp32": (current_version(out) / "tables.safetensors").stat().st_size}
    for kind in ("fp16", "int8"):
        artifact = export(run, tmp_path / kind, tables=kind, max_auc_change=1)
        sizes[kind] = (artifact.folder / "tables.safetensors").stat().st_size
        assert set(artifact.manifest.auc_change) == {"click@post"}
        assert artifact.manifest.auc_split == "test"
        assert abs(artifact.manifest.auc_change["click@post"]) < 0.01
        assert {entry.dtype for entry in artifact.manifest.tables.values()} == {kind}
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]


def test_an_auc_that_changes_too_much_is_refused(run, out, tmp_path, monkeypatch):
    change = api.AucChange({"click@post": -0.002}, "test")
    monkeypatch.setattr(api, "auc_change", lambda *_: change)
    with pytest.raises(UserError, match=r"int8 changes the AUC of click@post by -0.00200 on the test split.*0.0022"):
        export(run, tmp_path / "out", tables="int8")
    assert not (tmp_path / "out" / "current.json").exists()
    assert export(run, tmp_path / "out", tables="int8", max_auc_change=0.01).manifest.auc_change == change.by_task


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_int8_keeps_a_row_to_a_step_of_its_range(scale):
    random = np.random.default_rng(0)
    weight = (random.normal(size=(50, 16)) * scale).astype(np.float32)
    weight[3] = weight[3, 0]  # no range at all
    weight[4] = 0
    entry, arrays = narrowed("t", weight, TableEntry(rows=50, dim=16, dtype="fp32"), "int8")
    found = Tables({"t": entry}, arrays).rows("t", np.arange(50))
    step = np.ptp(weight, axis=1) / 255
    assert (np.abs(found - weight).max(axis=1) <= 0.75 * step + 2**-11 * np.abs(weight).max()).all()
    assert np.abs(found - weight).max() > 0


def test_an_interrupted_export_leaves_the_old_version_current(run, out, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (out / "versions" / ".partial").mkdir()  # of one that was killed
    (out / "versions" / ".partial" / "READY").touch()
    before = current_version(out)
    with monkeypatch.context() as patch:
        patch.setattr(api.Checked, "write_sample", stop)
        with pytest.raises(KeyboardInterrupt):
            export(run, out)
    assert current_version(out) == before
    assert Artifact.open(before).version == 1
    assert [path.name for path in (out / "versions").iterdir()] == ["1"]
    assert export(run, out).version == 2
    assert current_version(out).name == "2"
    (out / "current.json").write_text('{"version": 1}')


KILLED = """
import sys, time
from torchrec_xd.export import api

def wait(*_):
    print("half way", flush=True)
    time.sleep(300)

api.Checked.write_sample = wait
api.export(*sys.argv[1:])
"""


def test_an_export_that_is_killed_leaves_the_old_version_current(run, out, tmp_path):
    place = shutil.copytree(out, tmp_path / "out")
    versions = [path.name for path in (place / "versions").iterdir()]
    command = [sys.executable, "-c", KILLED, str(run), str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "half way\n"
            assert (place / "versions" / ".partial" / "tables.safetensors").is_file()
            with pytest.raises(UserError, match="in use"):
                export(run, place)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (place / "versions" / ".partial").is_dir()
    assert Artifact.open(current_version(place)).version == 1
    artifact = export(run, place)
    assert artifact.version == len(versions) + 1
    assert Artifact.open(current_version(place)).manifest.files == artifact.manifest.files
    assert {path.name for path in (place / "versions").iterdir()} == {*versions, str(artifact.version)}


def test_a_net_that_scores_otherwise_is_refused(run, tmp_path, monkeypatch):
    true = api.Checked.of

    def other(*arguments):
        found = true(*arguments)
        found.scores["click@post"] = found.scores["click@post"] + np.float32(1e-4)
        return found

    monkeypatch.setattr(api.Checked, "of", other)
    with pytest.raises(UserError, match=r"differs from the run's scores by 0.0001 .*nothing was exported"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out" / "versions").iterdir())


def change(path, old, new):
    content = json.loads(path.read_text())
    assert content[old] != new
    path.write_text(json.dumps({**content, old: new}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "READY").unlink(), "is not finished: it has no READY"),
        (lambda f: (f / "manifest.json").unlink(), "is no artefact: it has no manifest.json"),
        (lambda f: (f / "net.onnx").unlink(), "net.onnx is missing"),
        (lambda f: (f / "net.onnx").write_bytes(b"x"), "net.onnx was cut short or changed"),
        (lambda f: (f / "tables.safetensors").open("ab").write(b"0"), "tables.safetensors was cut short or changed"),
        (lambda f: (f / "schema.yaml").write_text("name: x"), "schema.yaml was cut short or changed"),
        (lambda f: change(f / "manifest.json", "format", 3), "format 3, and this version of torchrec-xd reads 2"),
        (lambda f: change(f / "manifest.json", "files", {"../x": "0"}), r"'\.\./x' lies outside its folder"),
        (lambda f: change(f / "manifest.json", "outputs", 3), "manifest.json: 'outputs'"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{}"), "is no manifest of an artefact"),
    ],
)
def test_a_damaged_or_foreign_artefact_is_refused(copy, damage, message):
    Artifact.open(copy)
    damage(copy)
    with pytest.raises(UserError, match=message):
        Artifact.open(copy)


def test_without_checksums_the_scorer_still_refuses(copy):
    (copy / "net.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"net.onnx: ONNX Runtime cannot load it"):
        Scorer(Artifact.open(copy, check=False))
    (copy / "tables.safetensors").write_bytes((5).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=r"not a readable safetensors file \(a header of 5 bytes in a file of 10\)"):
        Scorer(Artifact.open(copy, check=False))


def test_a_folder_without_exports_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"has no current.json: name the --out of a finished"):
        current_version(run)
    (tmp_path / "current.json").write_text('{"version": true}')
    with pytest.raises(UserError, match=r'expected {"version": NUMBER}'):
        current_version(tmp_path)


def test_rows_that_do_not_fit_are_refused(out, tmp_path):
    rows, _ = Artifact.open(current_version(out)).sample()
    pq.write_table(rows.drop_columns(["hour"]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"no column 'hour'"):
        score_by_artifact(out, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    wrong = rows.set_column(rows.column_names.index("style"), "style", pa.array([9] * rows.num_rows))
    pq.write_table(wrong, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"row 0, column 'style': 9 lies outside"):
        score_by_artifact(out, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()
    count = score_by_artifact(
        out, tmp_path / "rows.parquet", tmp_path / "scores.parquet", ScoreOptions(unseen_ids="drop")
    )
    assert count == rows.num_rows


def test_a_domain_that_the_run_lacks_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="--domain items: the run's domains are: post"):
        export(run, tmp_path / "out", domain="items")


def test_scoring_imports_no_torch(out, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from torchrec_xd.serving.artifact import Artifact, current_version\n"
        "from torchrec_xd.serving.batch_scoring import score_by_artifact\n"
        f"place = pathlib.Path({str(out)!r})\n"
        "sample = current_version(place) / 'sample.parquet'\n"
        f"assert score_by_artifact(place, sample, {str(tmp_path / 'scores.parquet')!r}) > 100\n"
        "assert 'torch' not in sys.modules and 'torchrec' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
