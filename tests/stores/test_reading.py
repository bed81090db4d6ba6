"""Training reads from an object store: as from a local folder, through outages, and told as one when it lasts."""

import json
import logging
import re
import socket
import threading
from types import SimpleNamespace

import pytest

from tests.support.commands import main_of
from tests.support.feeds import schema_at, write_feed
from tests.support.patient_runs import config_of, lines
from tests.support.raw_keys import raw_schema_at, write_raw
from tests.support.small_models import weights
from torchrec_xd.data import outages
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.outages import Patience, is_outage
from torchrec_xd.errors import OutageError, UserError
from torchrec_xd.training import train_run
from torchrec_xd.training.split_evaluation import SplitEvaluation
from torchrec_xd.training.train_run import train

LOADER = {"batch_size": 32, "shuffle_rows": 64, "prefetch": 1}
TRAINER = {"epochs": 3, "log_every": 1, "threads": 1}


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return write_feed(tmp_path_factory.mktemp("feed"), rows=320)


@pytest.fixture(scope="module")
def local(feed, tmp_path_factory):
    """The undisturbed run on the local folder."""
    run = tmp_path_factory.mktemp("runs") / "local"
    train(config(schema_at(feed)), run)
    return run


@pytest.fixture
def far(feed, store):
    """The schema of the same feed in the store."""
    store.put(feed, "feed")
    return {**schema_at(feed), "root": store.at("feed")}


def config(schema, **loader):
    return config_of(schema, loader={**LOADER, **loader}, trainer=TRAINER)


def assert_same(run, local):
    assert lines(run) == lines(local)
    assert (
        json.loads((run / "metrics.json").read_text())["eval"]
        == json.loads((local / "metrics.json").read_text())["eval"]
    )
    here, there = weights(run), weights(local)
    assert all(here[key].equal(there[key]) for key in there)


def test_undisturbed_it_is_the_local_run(far, local, tmp_path, store):
    train(config(far), tmp_path / "run")
    assert_same(tmp_path / "run", local)
    assert store.proxy.requests > 30


@pytest.mark.parametrize(("what", "seconds"), [("refuse", 3), ("refuse", 8), ("silence", 5)])
def test_a_store_that_is_away_for_seconds(far, local, tmp_path, store, what, seconds, monkeypatch):
    """PyArrow's own client survives 3 s; after 6 s it gives up, and is asked again."""
    own, validations = SplitEvaluation.monitored, []

    def disturbed(self, model, config):
        validations.append(1)
        if len(validations) == 1:
            store.proxy.disturb(getattr(store.proxy, what), at=1, seconds=seconds)
        return own(self, model, config)

    monkeypatch.setattr(SplitEvaluation, "monitored", disturbed)
    train(config(far), tmp_path / "run")
    assert_same(tmp_path / "run", local)
    told = (tmp_path / "run" / "log.txt").read_text().count("the store does not answer")
    assert told == (1 if seconds > 6 else 0)


def test_an_outage_in_validation_costs_no_epoch_and_resumes_exactly(far, local, tmp_path, store, monkeypatch):
    """Nobody is asked again here (0 minutes): what is left is the 6 s of PyArrow's own client."""
    own, validations = SplitEvaluation.monitored, []

    def disturbed(self, model, config):
        validations.append(1)
        if len(validations) == 2:
            store.proxy.refuse()
        return own(self, model, config)

    with monkeypatch.context() as patch:
        patch.setattr(SplitEvaluation, "monitored", disturbed)
        with pytest.raises(OutageError) as error:
            train(config(far, retry_s=0), tmp_path / "run")
    assert str(error.value).startswith(f"outage: the store of s3://{store.bucket}/feed/post/valid.parquet has not answ")
    steps = {line["step"] for line in lines(tmp_path / "run")}
    assert max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir()) == max(steps) == 20
    store.proxy.answer()
    train(config(far), tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", local)


def test_the_command_line_ends_with_a_code_that_schedulers_retry(far, local, tmp_path, store, monkeypatch, capfd):
    """An outage while it trains, then the same command once more."""
    run, content = tmp_path / "run", tmp_path / "run.yaml"
    content.write_text(config(far, retry_s=0).dump())
    store.proxy.disturb(store.proxy.refuse, at=25, seconds=3600)
    arguments = ("train", content, "--run-dir", run, "--restartable")
    assert main_of(monkeypatch, *arguments) == 75
    said = " ".join(capfd.readouterr().err.split())
    place = rf"s3://{store.bucket}/feed/post/\w+\.parquet"
    assert re.search(rf"error: outage: the store of {place} has not answered for \d+ s \(loader.retry_s\): ", said)
    assert "AWS Error NETWORK_CONNECTION" in said
    assert (
        "the files are not at fault; give the same command again when the store answers, train with --resume"
    ) in said
    assert "Traceback" not in said
    assert len(lines(run)) > 1, "some steps are trained"
    assert "metrics.json" not in {path.name for path in run.iterdir()}
    store.proxy.answer()
    assert main_of(monkeypatch, *arguments) == 0
    assert_same(run, local)


def test_away_from_the_start(far, tmp_path, store):
    store.proxy.refuse()
    with pytest.raises(OutageError, match=f"outage: the store of s3://{store.bucket}/feed/post/train.parquet"):
        train(config(far, retry_s=0), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("before", ["with_vocabularies", "keep_vocabularies"])
def test_away_before_vocabularies_and_encoders(store, tmp_path, before, monkeypatch):
    """Counting keys, and copying encoders after that, wait as long as training."""
    own = getattr(train_run, before)

    def disturbed(*arguments, **named):
        store.proxy.refuse()
        return own(*arguments, **named)

    write_raw(tmp_path / "feed", seed=0)
    store.put(tmp_path / "feed", "feed")
    schema = {**raw_schema_at(tmp_path / "feed"), "root": store.at("feed")}
    monkeypatch.setattr(train_run, before, disturbed)
    with pytest.raises(OutageError, match=rf"store of s3://{store.bucket}/feed/.* \(loader.retry_s\): "):
        train(config(schema, retry_s=0), tmp_path / "run")


def test_a_store_that_does_not_allow_it(store):
    """No outage, and nothing is wrong with a file either."""
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def refusing(listener):
        while True:
            client, _ = listener.accept()
            client.recv(1 << 16)
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode() + body)
            client.close()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=refusing, args=(listener,), daemon=True).start()
    location = f"s3://bucket/a.parquet?scheme=http&endpoint_override=127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(UserError, match=r"bucket/a\.parquet: cannot be listed: .*AWS Error ACCESS_DENIED"):
        ParquetFiles([location], ".", lambda file, schema: None)


class Clock:
    """Time passes where somebody sleeps."""

    def __init__(self, monkeypatch):
        self.now, self.slept = 0.0, []
        monkeypatch.setattr(outages, "time", self)
        monkeypatch.setattr(outages, "random", SimpleNamespace(uniform=lambda low, high: high))

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


REFUSED = OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7, …")


def test_waits_double_up_to_a_limit_and_end_in_time(monkeypatch, caplog):
    clock = Clock(monkeypatch)

    def refused():
        raise REFUSED

    with caplog.at_level(logging.WARNING), pytest.raises(OutageError) as error:
        Patience(60, "loader.retry_s")(refused, "s3://b/f")
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15, 14.5]
    assert str(error.value).startswith(
        "outage: the store of s3://b/f has not answered for 60 s (loader.retry_s): When reading: AWS Error NETWO"
    )
    assert error.value.__cause__ is REFUSED
    ends = [record.message.rpartition("; ")[2] for record in caplog.records]
    assert ends[:2] == ["asked again in 0.5 s", "asked again in 1.0 s"]


def test_the_wait_begins_anew_with_every_outage(monkeypatch):
    """Ten outages of 1 s each are none of 10 s."""
    clock, patience, answers = Clock(monkeypatch), Patience(5), []
    for _ in range(10):
        calls = []

        def read(calls=calls):
            calls.append(1)
            if len(calls) < 3:
                raise REFUSED
            return "rows"

        answers.append(patience(read, "s3://b/f"))
    assert answers == ["rows"] * 10
    assert clock.slept == [0.5, 1] * 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # As PyArrow 26 says it: of S3, GCS and Azure that refuse, answer 503, or answer 403.
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect"), True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."), True),
        (OSError("AWS Error SLOW_DOWN during ListObjectsV2 operation: m"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), False),
        (OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of"), True),
        (PermissionError(13, "google::cloud::Status(PERMISSION_DENIED: Permanent error, with a last message"), False),
        (OSError("failed. Azure Error: [] Fail to get a new connection for: http://127.0.0.1:50043. Could not"), True),
        (OSError("failed. Azure Error: [] 503 Server Busy"), True),
        (OSError("failed. Azure Error: [] 403 Forbidden"), False),
        (OSError("Error performing GET u in 2.2s, after 3 retries, max_retries 3 - HTTP error"), True),
        (OSError("GET u, after 3 retries, max_retries 3 - Server returned non-2xx status code: 503 Busy"), True),
        (OSError("GET u, after 1 retries, max_retries 3 - Server returned non-2xx status code: 403 Forbidden"), False),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (TimeoutError(), True),
        (FileNotFoundError(2, "Path does not exist 'bucket/a.parquet'"), False),
        (OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"), False),
    ],
)  # fmt: skip
def test_what_is_an_outage(error, expected):
    assert is_outage(error) is expected


def test_what_is_none_is_raised_at_once(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(FileNotFoundError):
        Patience()(lambda: open("/nowhere/at/all"), "s3://b/f")  # noqa: SIM115
    assert clock.slept == []


def test_a_relative_location_below_a_root_with_options(store, feed):
    store.put(feed / "post", "a b")
    files = ParquetFiles(["valid.parquet"], store.at("a b"), lambda file, schema: None)
    assert [stamp.name for stamp in files.stamps()] == ["valid.parquet"]
