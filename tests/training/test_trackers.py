"""Trackers have what metrics.jsonl has, whatever happens to run and tracker: a real MLflow server, and W&B offline."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.feeds import schema_at, write_feed
from tests.support.mlflow_server import MlflowServer
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.log import RunLog
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import validate
from torchrec_xd.training import trackers, tracking, trainer
from torchrec_xd.training.train_run import train

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra 'trackers')")
_validate_metric_name = mlflow.utils.validation._validate_metric_name
wandb = pytest.importorskip("wandb", reason="W&B is not installed (extra 'trackers')")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Nothing of this machine's own settings, quick looks, and no word to the world outside."""
    for name, value in {
        "HOME": str(tmp_path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.2)
    yield
    wandb.teardown()  # it reads the environment once in a process


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    return mlflow.MlflowClient()


def config_of(folder, *names, **changes):
    content = {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 64},
        "trainer": {"epochs": 3, "log_every": 2, "threads": 1},
        "trackers": names,
        **changes,
    }
    return validate(RunConfig, content, "test")


def lines(run):
    """Step, name and value of all numbers of metrics.jsonl."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted((line["step"], k, v) for line in found for k, v in line.items() if k != "step" and v is not None)


def id_in(run, name):
    return json.loads((run / f"tracker.{name}.json").read_text())["run"]


def in_mlflow(client, run):
    """The same of the run in MLflow, without its final metrics."""
    known = client.get_run(id_in(run, "mlflow")).data.metrics
    history = [point for name in known for point in client.get_metric_history(id_in(run, "mlflow"), name)]
    return sorted((point.step, point.key, point.value) for point in history if not point.key.startswith("test/"))


def of_trackers(values):
    """The same by the names that trackers have."""
    return [(step, name.replace("@", "/"), value) for step, name, value in values]


def in_wandb(run):
    """The last folder that W&B wrote, read by W&B itself; its history in the same shape, and its summary."""
    [*_, folder] = sorted(run.glob(f"wandb/offline-run-*-{id_in(run, 'wandb')}"))
    read = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    records = map(json.loads, subprocess.run(read, check=True, capture_output=True, text=True).stdout.splitlines())
    history, summary = [], {}
    for record in records:
        if record["type"] == "history":
            row = {name: value for name, value in record["history"]["item"].items() if not name.startswith("_")}
            history += [(row["step"], name, value) for name, value in row.items() if name != "step"]
        elif record["type"] == "summary":
            summary |= record["summary"]["update"]
    return folder, sorted(history), summary


def said(run):
    """What trackers have said, of the log."""
    return re.findall(r"INFO torchrec_xd\.log: ((?:warning: )?tracker .*)", (run / "log.txt").read_text())


def crash_at(monkeypatch, epoch, step, action=None):
    """Let the run die in a step, or do something else there."""
    forward = trainer.forward

    def die(training, batch):
        if (batch.position.epoch, batch.position.step) == (epoch, step):
            if action is None:
                raise RuntimeError("killed")
            action()
        return forward(training, batch)

    monkeypatch.setattr(trainer, "forward", die)


def test_both_have_what_the_run_folder_has(tmp_path, client):
    run = tmp_path / "run"
    content = train(config_of(tmp_path, "mlflow", "wandb"), run)
    assert len({step for step, *_ in lines(run)}) == 12  # every second step of 3 x 7, and the last ones
    assert in_mlflow(client, run) == of_trackers(lines(run))
    found = client.get_run(id_in(run, "mlflow"))
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "torchrec-xd"
    assert found.data.params["trainer.epochs"] == "3"
    assert found.data.params["model.name"] == "single"
    assert not [name for name in found.data.params if name.startswith("schema")]
    auc = content["eval"]["click@post"]["auc"]
    assert [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, "test/click/post/auc")] == [
        (21, auc)
    ]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.yaml", "plan.json", "data.json", "metrics.json"}
    assert (
        Path(client.download_artifacts(found.info.run_id, "metrics.json")).read_text()
        == (run / "metrics.json").read_text()
    )

    folder, history, summary = in_wandb(run)
    assert history == of_trackers(lines(run))
    assert summary["test/click/post/auc"] == auc
    assert {path.name for path in (folder / "files").iterdir()} >= files
    assert said(run) == []


def test_a_run_that_died_goes_on_as_the_same_without_a_step_twice(tmp_path, client, monkeypatch):
    run, config = tmp_path / "run", config_of(tmp_path, "mlflow", "wandb")
    with monkeypatch.context() as patched:
        crash_at(patched, 1, 6)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, run)
    begun = {name: id_in(run, name) for name in ("mlflow", "wandb")}
    assert max(step for step, *_ in lines(run)) == 12  # to be trained again: the checkpoint is that of step 7
    assert max(step for step, *_ in in_mlflow(client, run)) == 7
    assert client.get_run(begun["mlflow"]).info.status == "FAILED"
    train(config, run, resume=True)
    assert begun == {name: id_in(run, name) for name in begun}
    assert client.get_run(begun["mlflow"]).info.status == "FINISHED"
    assert in_mlflow(client, run) == of_trackers(lines(run))
    assert in_wandb(run)[1] == of_trackers(lines(run))

    longer = config.model_copy(update={"trainer": config.trainer.model_copy(update={"epochs": 4})})
    train(longer, run, resume=True)
    assert in_mlflow(client, run) == of_trackers(lines(run))
    final = client.get_metric_history(begun["mlflow"], "test/click/post/auc")
    assert [point.step for point in final] == [21, 28]


def test_a_run_that_goes_on_from_before_what_was_sent_is_another_one(tmp_path, client):
    run, config = tmp_path / "run", config_of(tmp_path, "mlflow", "wandb", checkpoint={"keep": 3})
    train(config, run)
    begun = {name: id_in(run, name) for name in ("mlflow", "wandb")}
    shutil.rmtree(run / "checkpoints" / "step_000000021")
    train(config, run, resume=True)
    assert said(run) == [
        f"tracker mlflow: run {begun['mlflow']} has later steps than the resumed run; another one begins"
    ]
    assert client.get_run(begun["mlflow"]).info.status == "KILLED"
    assert id_in(run, "mlflow") != begun["mlflow"]
    assert in_mlflow(client, run) == of_trackers(lines(run))
    assert in_wandb(run)[1] == of_trackers(lines(run))  # each of its folders has all lines


def test_a_later_checkpoint_that_is_damaged_makes_no_step_certain(tmp_path, client, monkeypatch):
    """The run has passed over it, and may have to go back before it once more."""
    run, config = tmp_path / "run", config_of(tmp_path, "mlflow", checkpoint={"keep": 3})
    with monkeypatch.context() as patched:
        crash_at(patched, 2, 1)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, run)
    (run / "checkpoints" / "step_000000014" / "position.json").write_text("")
    begun = id_in(run, "mlflow")
    with monkeypatch.context() as patched:
        crash_at(patched, 1, 6)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, run, resume=True)
    assert id_in(run, "mlflow") != begun
    assert max(step for step, *_ in in_mlflow(client, run)) == 7


def test_a_server_that_dies_in_the_middle_gets_the_rest_when_it_is_back(tmp_path, monkeypatch, client, server):
    run, config = tmp_path / "run", config_of(tmp_path, "mlflow")

    def kill():
        until = time.monotonic() + 60
        while not ((run / "tracker.mlflow.json").exists() and in_mlflow(client, run)) and time.monotonic() < until:
            time.sleep(0.05)
        server.kill()

    with monkeypatch.context() as patched:
        crash_at(patched, 1, 3, kill)
        train(config, run)
    assert (run / "metrics.json").exists()
    (during, after) = said(run)
    assert during.startswith("warning: tracker mlflow: ")
    assert during.endswith("; the run goes on, and it is tried again")
    assert after.endswith("; it lacks some of the run")
    server.start()
    assert max(step for step, *_ in in_mlflow(client, run)) == 7
    train(config, run, resume=True)
    assert in_mlflow(client, run) == of_trackers(lines(run))
    assert client.get_run(id_in(run, "mlflow")).info.status == "FINISHED"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_silent_server_is_waited_for_a_bounded_time(tmp_path, monkeypatch, name):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:CANARY@127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "CANARY" + 34 * "0")
        monkeypatch.setenv("WANDB_MODE", "online")
        for module in (tracking, trackers):
            monkeypatch.setattr(module, "END_SECONDS", 2)
        begun = time.monotonic()
        train(config_of(tmp_path, name), tmp_path / "run")
        wandb.teardown()  # as at the end of the process
        took = time.monotonic() - begun
        begun = time.monotonic()
        train(config_of(tmp_path), tmp_path / "without")
        assert took < time.monotonic() - begun + 2 + (
            5 if name == "mlflow" else 15
        )  # W&B asks for 10 s before it begins
    assert said(tmp_path / "run")[-1].startswith(f"warning: tracker {name}")
    assert said(tmp_path / "run")[-1].endswith("lacks some of the run")
    for path in (tmp_path / "run").glob("*.*"):
        assert "CANARY" not in (path.read_text() if path.is_file() else "")


def test_an_error_shows_no_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:CANARY@127.0.0.1:9")
    train(config_of(tmp_path, "mlflow"), tmp_path / "run")
    (*_, last) = said(tmp_path / "run")
    assert "http://***@127.0.0.1:9" in last
    for path in (tmp_path / "run").glob("*.*"):
        assert "CANARY" not in (path.read_text() if path.is_file() else ""), path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlflow", "mlflow: MLFLOW_TRACKING_URI does not say where MLflow is; set it, for example to http://"),
        ("wandb", "wandb: no API key is known; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline to write"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path, monkeypatch, name, message):
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match=f"trackers: {message}"):
        train(config_of(tmp_path, name), tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'torchrec-xd\[trackers\]', or remove"):
        train(config_of(tmp_path, name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(UserError, match="'mlflow' or 'wandb'"):
        config_of(tmp_path, "mlfow")


def test_other_ranks_follow_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "Follower", None)
    with (
        RunLog(tmp_path, rank=1) as log,
        tracking.Trackers(config_of(tmp_path, "mlflow"), RunFolder(tmp_path), log) as t,
    ):
        t.start(lambda: (0, True))


@given(st.text())
def test_names_are_taken_by_mlflow(metric):
    _validate_metric_name(trackers.name_of(metric))


def test_names_stay_what_they_were():
    assert trackers.name_of("auc/click@post") == "auc/click/post"
    assert trackers.name_of("a.b-c_d: é") == "a.b-c_d: é"
    assert trackers.name_of("50%/../x") == "50_/_/x"


@pytest.mark.parametrize("score", [0.7, None])  # None: a score that is not finite
def test_a_validation_is_sent_once_its_checkpoint_notes_it(tmp_path, monkeypatch, score):
    """Before that, a run that is killed validates again."""
    sent = []

    class Tracker:
        def __init__(self, folder):
            pass

        def open(self, run):
            return "one", 0

        def describe(self, settings):
            pass

        def send(self, lines, total):
            sent.extend(lines)

        def finish(self, *_):
            pass

    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": Tracker})
    of_run = [{"step": 7, "loss": 0.5}, {"step": 7, "valid": score}, {"step": 8, "loss": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in of_run))
    saved = (7, False)
    follower = tracking.Follower("mlflow", RunFolder(tmp_path), {}, print)
    follower.start(lambda: saved)
    time.sleep(0.3)
    assert [line.values for line in sent] == [{"loss": 0.5}]
    saved = (7, True)
    follower.end("FAILED")
    follower.wait(time.monotonic() + 5)
    assert [line.step for line in sent] == [7, 7]


# Both ranks have the same error; the tracker needs longer than rank 1 to leave.
FAILED = """
import pathlib, sys, time
from types import SimpleNamespace
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError
from torchrec_xd.log import RunLog
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.training import tracking

folder = pathlib.Path(sys.argv[1])

class Slow:
    def __init__(self, folder): pass
    def open(self, run): return "one", 0
    def describe(self, settings): pass
    def finish(self, status, *_):
        time.sleep(5)
        (folder / "told").write_text(status)

def command():
    config = SimpleNamespace(trackers=("mlflow",), by_key=dict)
    with process_group() as processes, RunLog(folder, processes.rank) as log:
        with tracking.Trackers(config, RunFolder(folder), log) as trackers:
            trackers.start(lambda: (0, True))
            processes.barrier()
            raise UserError("the loss became nan")

tracking.TRACKERS = {"mlflow": Slow}
run_command(command)
"""


def test_trackers_hear_of_a_failed_run_of_several_processes(tmp_path):
    """torchrun asks rank 0 to stop when rank 1 has left."""
    (tmp_path / "job.py").write_text(FAILED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, tmp_path / "job.py", tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.count("error: the loss became nan") == 1, done.stderr
    assert (tmp_path / "told").read_text() == "FAILED"
