"""Every path of the product works on an object store, or is refused by name before anything is made."""

import contextlib
import errno
import typing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.feeds import schema_at, write_feed
from tests.support.label_logs import LABELS, labels, small_logs
from tests.support.label_logs import run as run_label
from tests.support.patient_runs import config_of
from torchrec_xd.cli.app import app
from torchrec_xd.config import load_run
from torchrec_xd.data.predictions import PredictionColumns, PredictionWriter, check_output
from torchrec_xd.errors import OutageError, UserError
from torchrec_xd.export.api import export
from torchrec_xd.given_paths import local_path
from torchrec_xd.launch import components
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.serving.batch_scoring import ScoreOptions, score_by_artifact
from torchrec_xd.settings import load_yaml
from torchrec_xd.study.design import StudyData
from torchrec_xd.training.inference import score
from torchrec_xd.training.train_run import train

RULE = (
    ": has to be a path on this machine: of a disk, of NFS, or of a mounted bucket; stores are for rows alone ('root' "
    "and paths of a schema, ROWS and --out of score)"
)
FAR = "s3://bucket/place"


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return write_feed(tmp_path_factory.mktemp("feed"), rows=128)


@pytest.fixture(scope="module")
def run(feed, tmp_path_factory):
    """A finished run on the local feed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(schema_at(feed), trainer={"epochs": 1, "threads": 1}), folder)
    return folder


def commands():
    """Every command, and its parameters that are paths."""
    for group in (app, *(each.typer_instance for each in app.registered_groups)):
        for command in group.registered_commands:
            kinds = typing.get_type_hints(command.callback)
            names = [name for name, kind in kinds.items() if Path in (kind, *typing.get_args(kind))]
            yield from (
                pytest.param(command.callback, name, id=f"{command.callback.__name__}-{name}") for name in names
            )


@pytest.mark.parametrize(("command", "name"), commands())
def test_every_path_of_every_command_is_local(command, name):
    with pytest.raises(UserError) as error:
        command(**{name: Path(FAR)})
    what, _, rule = str(error.value).partition(FAR)
    assert rule == RULE
    assert what.startswith("--") or what.isupper()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "CONFIG", "--run-dir", "s3://bucket/run"], "--run-dir s3://bucket/run"),
        (["train", "gs://bucket/a.yaml", "--run-dir", "run"], "CONFIG gs://bucket/a.yaml"),
        (["train", "CONFIG", "--run-dir", "run", "--continue-from", "s3://b/run"], "--continue-from s3://b/run"),
        (["train", "CONFIG", "--run-dir", "run", "--schema", "s3://b/schema.yaml"], "--schema s3://b/schema.yaml"),
        (["train", "CONFIG", "--run-dir", "run", "--set", "init_from=s3://b/run"], "'init_from': s3://b/run"),
        (["train", "CONFIG", "--run-dir", "run", "--set", "sharding.plan=s3://b/p"], "'sharding.plan': s3://b/p"),
        (["prepare", "world", "--preset", "helps", "--out", "abfs://b@c/world"], "--out abfs://b@c/world"),
        (["prepare", "s3://bucket/recipe.yaml"], "s3://bucket/recipe.yaml"),
        (["export", "runs/a", "--out", "hdfs://host:8020/models"], "--out hdfs://host:8020/models"),
        (["export", "s3://bucket/run", "--out", "models"], "RUN s3://bucket/run"),
        (["evaluate", "s3://bucket/run"], "RUN s3://bucket/run"),
        (["score", "s3://bucket/run", "a.parquet", "--domain", "post", "--out", "a"], "run folder s3://bucket/run"),
        (["score", "--artifact", "s3://bucket/model", "a.parquet", "--out", "a"], "--artifact s3://bucket/model"),
        (["score", "RUN", "a.parquet", "--domain", "post", "--out", "hdfs://h/a.parquet"], "--out hdfs://h/a.parquet"),
        (["serve", "s3://bucket/model"], "OUT s3://bucket/model"),
        (["compare", "study.yaml", "--out", "file:///studies"], "--out file://studies"),
        (["replay", "replay.yaml", "--out", "s3://bucket/replay"], "--out s3://bucket/replay"),
        (["simulate", "simulation.yaml", "--out", "s3://bucket/month"], "--out s3://bucket/month"),
        (["plan", "build", "--cluster", "s3://bucket/cluster.yaml", "--tables", "t.csv"], None),
    ],
)
def test_commands_make_nothing(arguments, said, feed, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = tmp_path / "run.yaml"
    content.write_text(config_of(schema_at(feed)).dump())
    places = {"CONFIG": str(content), "RUN": str(run)}
    result = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    if said is None:
        assert result.exit_code != 0
    else:
        assert isinstance(result.exception, UserError), result.output
        assert f"{said}{RULE}" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_python_is_refused_alike(feed, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: train(config_of(schema_at(feed)), FAR),
        lambda: train(config_of(schema_at(feed)), tmp_path / "new", continue_from=FAR),
        lambda: export(run, FAR),
        lambda: load_run(Path(FAR)),
        lambda: RunFolder(Path(FAR)),
        lambda: load_yaml(Path(FAR)),
        lambda: score(run, None, Path(FAR), "post"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert f"{FAR}{RULE}" in str(error.value)
    with pytest.raises(ValueError, match="has to be a path on this machine"):
        StudyData(task="a@b", schema=FAR)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run_dir", "config"])
def test_components_submit_nothing(name, feed, tmp_path, capsys):
    content = tmp_path / "run.yaml"
    content.write_text(config_of(schema_at(feed)).dump())
    with pytest.raises(SystemExit) as ended:
        components.train(**{"config": str(content), "run_dir": "runs/a", name: FAR})
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{FAR}{RULE}" in said
    assert name == "config" or "--run_dir" in said


def test_the_components_of_other_stages(capsys):
    for call in (
        lambda: components.evaluate(run_dir=FAR),
        lambda: components.evaluate(run_dir="runs/a", out=f"{FAR}.json"),
    ):
        with pytest.raises(SystemExit):
            call()
        assert RULE in capsys.readouterr().err


@pytest.mark.parametrize("path", ["a", "./a b", "/a/b", "a:b", "C:/a", "a/s3:/b", "12:00/a"])
def test_what_is_local_stays_as_it_is(path):
    assert local_path(path) == Path(path)


def test_inputs_of_a_recipe_are_local(tmp_path):
    recipe = tmp_path / "shop.yaml"
    pq.write_table(pq.read_table(write_feed(tmp_path / "feed", rows=64) / "post/train.parquet"), tmp_path / "a.parquet")
    result = CliRunner().invoke(app, ["init", f"logs={tmp_path}/a.parquet", "--out", str(recipe)])
    assert result.exit_code == 0, result.exception
    where = ["--input", "logs=s3://bucket/logs.parquet", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["prepare", str(recipe), *where])
    assert f"s3://bucket/logs.parquet{RULE}" in str(result.exception)
    assert not (tmp_path / "out").exists()


class TestScoring:
    """Rows are read from a store, and predictions written into one."""

    @pytest.fixture
    def local(self, run, feed, tmp_path):
        score(run, feed / "post/test.parquet", tmp_path / "local.parquet", "post", keep=["hour"])
        return pq.read_table(tmp_path / "local.parquet")

    def read(self, store, name):
        return pq.read_table(f"{store.bucket}/{name}", filesystem=store.files())

    def test_by_a_run(self, run, feed, local, store):
        store.put(feed, "feed")
        rows, out = store.at("feed/post/test.parquet"), store.at("scores/a.parquet")
        command = ["score", str(run), rows, "--domain", "post", "--keep", "hour", "--out", out]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.exception
        assert self.read(store, "scores/a.parquet").equals(local)
        assert store.names("scores") == ["scores/a.parquet"]

    def test_by_an_artefact(self, run, feed, store, tmp_path):
        store.put(feed, "feed")
        export(run, tmp_path / "model")
        score_by_artifact(tmp_path / "model", feed / "post/test.parquet", tmp_path / "near.parquet")
        for workers in (1, 2):
            far = store.at(f"scores/{workers}.parquet")
            options = ScoreOptions(workers=workers)
            assert score_by_artifact(tmp_path / "model", store.at("feed/post/test.parquet"), far, options) == 64
            assert self.read(store, f"scores/{workers}.parquet").equals(pq.read_table(tmp_path / "near.parquet"))

    def test_nothing_is_left_of_what_fails(self, run, feed, store, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

        def broken(self, table):
            raise KeyError

        with monkeypatch.context() as patch, contextlib.suppress(KeyError):
            patch.setattr(PredictionWriter, "write", broken)
            score(run, feed / "post/test.parquet", store.at("a.parquet"), "post")
        assert store.names() == []
        assert not list(tmp_path.iterdir())

    def test_a_bucket_that_is_not_there(self, run, feed, store):
        out = store.at("a.parquet").replace(store.bucket, "nosuch")
        with pytest.raises(UserError, match="there is no such bucket"):
            score(run, feed / "post/test.parquet", out, "post")

    @pytest.mark.parametrize("name", ["", "scores/"])
    def test_what_names_no_object(self, name, store):
        with pytest.raises(UserError, match=r"--out s3://.*: names no object; write s3://BUCKET/PATH\.parquet"):
            check_output(store.at(name))

    def test_a_store_that_may_not_be_written(self, store, monkeypatch):
        check_output(store.at("scores/a.parquet"))
        assert store.names() == []

        class Denying:
            def get_file_info(self, path):
                return store.files().get_file_info(path)

            def open_output_stream(self, path):
                raise OSError(f"AWS Error ACCESS_DENIED for {path}")

        there = f"{store.bucket}/scores/a.parquet"
        monkeypatch.setattr("torchrec_xd.data.predictions.filesystem_of", lambda _: (Denying(), there))
        with pytest.raises(UserError, match=r"--out s3://.*: cannot be written: .*ACCESS_DENIED"):
            check_output(store.at("scores/a.parquet"))

    @pytest.mark.parametrize("outage", [False, True])
    def test_what_cannot_be_copied_is_kept(self, outage, store, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("torchrec_xd.data.predictions.Patience", lambda: _once)
        columns = PredictionColumns("user", ("click",))
        table = columns.table(np.array([7]), np.array([[0.5]], dtype=np.float32))
        where = store.at("a.parquet") if outage else store.at("a.parquet").replace(store.bucket, "nosuch")

        def write():
            with PredictionWriter(where, columns) as writer:
                writer.write(table)
                if outage:
                    store.proxy.refuse()

        with pytest.raises(OutageError if outage else UserError) as error:
            write()
        (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
        assert f"the predictions are kept in {kept}: copy them from there" in str(error.value)
        assert pq.read_table(kept).equals(table)

    @pytest.mark.parametrize("far", [False, True])
    def test_a_disk_that_is_full_at_the_end(self, far, store, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

        close = pq.ParquetWriter.close

        def full(written):
            close(written)
            raise OSError(errno.ENOSPC, "No space left on device")

        writer = PredictionWriter(store.at("a.parquet") if far else tmp_path / "a.parquet", PredictionColumns("u", ()))
        monkeypatch.setattr(pq.ParquetWriter, "close", full)
        with pytest.raises(OSError, match="No space left"), writer:
            pass
        assert not list(tmp_path.iterdir())

    def test_an_outage_before_the_work(self, run, feed, store, monkeypatch):
        monkeypatch.setattr("torchrec_xd.data.predictions.Patience", lambda: _once)
        store.proxy.refuse()
        with pytest.raises(OutageError, match=r"scores\.parquet"):
            score(run, feed / "post/test.parquet", store.at("scores.parquet"), "post")


def _once(read, place):
    from torchrec_xd.data.outages import Patience

    return Patience(0)(read, place)


def test_a_run_keeps_the_encoders_of_data_on_a_store(feed, store, tmp_path):
    """They lie with the data, and `score --raw` needs them."""
    store.put(feed, "feed")
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders/encoders.json").write_text("{}")
    (tmp_path / "encoders/item.parquet").write_bytes(b"rows")
    store.put(tmp_path / "encoders", "feed/encoders")
    schema = {**schema_at(feed), "root": store.at("feed")}
    train(config_of(schema, trainer={"epochs": 1, "threads": 1}), tmp_path / "run")
    kept = tmp_path / "run/encoders"
    assert (kept / "encoders.json").read_text() == "{}"
    assert (kept / "item.parquet").read_bytes() == b"rows"


def test_labels_for_exposures_on_a_store(store, tmp_path):
    folder, content = small_logs(tmp_path)
    store.put(tmp_path, "logs")
    there = {key: store.at(f"logs/{Path(content[key]).name}") for key in ("exposures", "target")}
    run_label(
        (folder, content), sources={name: store.at(f"logs/{name}.parquet") for name in content["sources"]}, **there
    )
    assert labels(folder / "out/labelled/shown.parquet") == LABELS
