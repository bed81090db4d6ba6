"""Credentials in a location are refused, and nothing that is written or shown holds them."""

import pytest
from typer.testing import CliRunner

from tests.support.commands import main_of
from tests.support.feeds import schema_at, write_feed
from tests.support.patient_runs import config_of
from torchrec_xd.cli.app import app
from torchrec_xd.error_boundary import fail
from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import masked, without_secrets

CANARY = "kAnArIeNvOgEl"
LOCATIONS = [
    f"s3://AKIA:{CANARY}@bucket/data",
    f"s3://AKIA:a/b+{CANARY}@bucket/data?region=eu-west-1",
    f"s3://bucket/data?secret_key={CANARY}&region=eu-west-1",
    f"s3://bucket/data?region=eu-west-1&session_token={CANARY}",
    f"abfs://account:{CANARY}@host/container/data",
    f"s3://AKIA:7/{CANARY}@bucket/data",
    f"abfss://:{CANARY}==@account.dfs.core.windows.net/container/data",
    f"abfss://account.blob.core.windows.net/data?AccountKey={CANARY}",
    f"https://host/data?apikey={CANARY}",
    f"https://host/data?X-Amz-Signature={CANARY}",
    f"https://account.blob.core.windows.net/data?sv=2024&sig={CANARY}",
]
PLAIN = [
    "s3://bucket/data?scheme=http&endpoint_override=127.0.0.1:5000&region=eu-west-1",
    "gs://anonymous@bucket/data",
    "abfs://container@account.dfs.core.windows.net/data",
    "hdfs://host:8020/user@site/data",
    "hdfs://user@host:8020/data",
    "https://host:8443/data@2024",
    "https://host/data?design_version=3&bucket=sassafras&keyspace=a",
    "data/a:b@c",
]


@pytest.fixture
def feed(tmp_path):
    return write_feed(tmp_path / "feed", rows=64)


def assert_unseen(tmp_path, *texts, besides=()):
    """The canary is in no text, and in no file below a folder."""
    for text in texts:
        assert CANARY not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in besides]
    assert files
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("location", LOCATIONS)
def test_what_holds_a_secret(location):
    with pytest.raises(UserError, match="holds credentials, which would be written into config") as error:
        without_secrets(location)
    assert CANARY not in str(error.value)
    assert "***" in str(error.value)
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(error.value)


@pytest.mark.parametrize("location", PLAIN)
def test_what_holds_none(location):
    assert without_secrets(location) == masked(location) == location


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize(
    "words",
    [
        ["train", "CONFIG", "--run-dir", "run", "--set", "schema.root=X"],
        ["train", "CONFIG", "--run-dir", "run", "--set", "schema.domains.post.test=X"],
        ["train", "CONFIG", "--run-dir", "run", "--set", "schema.domains.post.train=[X, X]"],
        ["train", "CONFIG", "--run-dir", "run", "--set", "schema.dim=X"],
        ["train", "CONFIG", "--run-dir", "run", "--set", "init_from=X"],
        ["train", "CONFIG", "--run-dir", "X"],
        ["train", "CONFIG", "--run-dir", "run", "--continue-from", "X"],
        ["prepare", "world", "--preset", "helps", "--out", "X"],
        ["score", "X", "X", "--domain", "post", "--out", "scores.parquet"],
        ["evaluate", "X"],
    ],
    ids=" ".join,
)
def test_it_is_shown_and_written_nowhere(words, location, feed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(config_of(schema_at(feed)).dump())
    given = [word.replace("X", location) if "X" in word.split("=")[-1] else word for word in words]
    result = CliRunner().invoke(app, [str(tmp_path / "run.yaml") if word == "CONFIG" else word for word in given])
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert_unseen(tmp_path, str(result.exception), result.output)
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "feed"}


def test_scoring_rows_and_predictions(feed, tmp_path, monkeypatch):
    """Locations that no config holds; the run is a good one."""
    from torchrec_xd.training.train_run import train

    monkeypatch.chdir(tmp_path)
    train(config_of(schema_at(feed), trainer={"epochs": 1, "threads": 1}), tmp_path / "run")
    location = f"s3://AKIA:{CANARY}@bucket/a.parquet"
    for rows, out in ((location, "a.parquet"), (str(feed / "post/test.parquet"), location)):
        result = CliRunner().invoke(app, ["score", "run", rows, "--domain", "post", "--out", out])
        assert isinstance(result.exception, UserError), result.exception
        assert_unseen(tmp_path, str(result.exception), result.output)


def test_what_the_screen_shows(feed, tmp_path, monkeypatch, capfd):
    content = config_of(schema_at(feed)).dump().replace(str(feed), f"s3://AKIA:{CANARY}@bucket/data")
    (tmp_path / "own.yaml").write_text(content)
    assert main_of(monkeypatch, "train", tmp_path / "own.yaml", "--run-dir", tmp_path / "run") == 2
    out, err = capfd.readouterr()
    assert "s3://***@bucket/data: holds credentials" in err
    assert_unseen(tmp_path, out, err, besides=["own.yaml"])


def test_no_error_shows_one(monkeypatch, capfd):
    """Whatever a message is made of: errors end in one place."""
    with pytest.raises(SystemExit):
        fail(UserError(f"s3://AKIA:{CANARY}@bucket/a.parquet: no such file"))
    assert capfd.readouterr().err == "error: s3://***@bucket/a.parquet: no such file\n"
