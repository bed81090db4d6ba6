"""The kill schedule in short, through real processes, and what the tool says when it cannot be kept."""

import json
import os
import shutil
import signal
import sys
import time

import psutil
import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import PRETRAIN
from tools import chaos
from torchrec_xd.config import load_config
from torchrec_xd.errors import UserError
from torchrec_xd.training import train_run as run

pytestmark = pytest.mark.slow

# Starts a process that would outlive it, says so, and waits.
PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """MKT's first stage with dropout, so that the random generators count."""
    folder = tmp_path_factory.mktemp("chaos")
    content = {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {**PRETRAIN, "dropout": 0.3},
        "loader": {"batch_size": 64},
        "trainer": {"epochs": 4, "log_every": 2, "threads": 1},
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    (folder / "mkt.yaml").write_text(yaml.safe_dump(content))
    return folder / "mkt.yaml"


@pytest.fixture
def job(tmp_path):
    """Start Python code in place of torchrun, of which nothing is left after the test."""
    started = []

    def start(code, patience=30.0):
        started.append(chaos.Job([sys.executable, "-c", code], tmp_path / "run", 2, patience))
        return started[-1]

    yield start
    for one in started:
        one.end()


def alive(text):
    """Processes whose command line holds `text`."""
    every = [process for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid()]
    return [process for process in every if any(text in word for word in process.info["cmdline"] or ())]


def test_a_run_that_was_told_to_stop_and_killed_ends_with_the_bits_of_one_left_alone(config, tmp_path):
    kills = chaos.schedule(2, 2, seed=7)
    assert [kill.rank for kill in kills] == [None, 0]  # SIGTERM to all, then SIGKILL to rank 0
    report = chaos.put_to_the_test(config, [], tmp_path / "out", kills, 2, 120.0)
    assert report.pop("seconds") > 0
    assert report == {"kills": 2, "restarts": 2, "bit_equal": True, "config": str(config)}
    assert not alive(str(tmp_path))
    # Each start says what it trains on: two of them in the second run's log would mean a kill that never was.
    starts = [(tmp_path / "out" / f"{name}.log").read_text().count("rows an epoch") for name in chaos.RUNS]
    assert starts == [1, 3]


def test_what_differs_is_found(config, tmp_path):
    settings = load_config(config, ["trainer.epochs=1"])
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    run.train(settings, one)
    shutil.copytree(one, same)
    assert chaos.differences(one, same) == []
    content = json.loads((same / "metrics.json").read_text())
    (same / "metrics.json").write_text(json.dumps({**content, "train": {}, "split": "valid"}))
    lines = (same / "metrics.jsonl").read_text().splitlines(keepends=True)
    (same / "metrics.jsonl").write_text("".join([*lines[:-1], lines[-1].replace("valid", "invalid")]))
    assert chaos.differences(one, same) == ["metrics.json: split", f"metrics.jsonl: {json.loads(lines[-1])}"]
    run.train(load_config(config, ["trainer.epochs=1", "seed=1"]), other)
    found = chaos.differences(one, other)
    for expected in ("tensor model.", "tensor optimizer.", "tensor rng.0", "metrics.json: eval", "metrics.jsonl: "):
        assert any(line.startswith(expected) for line in found), found


def test_the_schedule_is_drawn_by_the_seed():
    kills = chaos.schedule(400, 3, seed=1)
    assert kills == chaos.schedule(400, 3, seed=1) != chaos.schedule(400, 3, seed=2)
    assert [kill.after for kill in kills] == sorted(kill.after for kill in kills)
    assert kills[0].after < 0.01
    assert 0.79 < kills[-1].after < 0.8
    assert all(0 <= kill.wait < 1 for kill in kills)
    counts = [sum(kill.rank == rank for kill in kills) for rank in (None, 0, 1, 2)]
    assert all(70 < count < 130 for count in counts), counts  # one in four each


def test_a_rank_trains_as_long_as_it_catches_a_stop_request():
    mine = psutil.Process()
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert not chaos._hears_stop_requests(mine)
        signal.signal(signal.SIGTERM, lambda *_: None)
        assert chaos._hears_stop_requests(mine)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_job_that_ends_too_early_is_an_error_with_its_last_words(job):
    with pytest.raises(UserError, match=r"(?s)exit code 3, before it trained.*last words"):
        job("print('last words'); raise SystemExit(3)").wait(lambda: False, "before it trained")


def test_a_job_without_progress_is_an_error(job):
    stuck, began = job("import time; time.sleep(600)", patience=0.3), time.monotonic()
    with pytest.raises(UserError, match=r"no progress.*every_steps"):
        stuck.wait(lambda: False, "after 1 of 2 kills")
    assert 0.3 <= time.monotonic() - began < 5


def test_nothing_is_left_of_a_job(job):
    parent = job(PARENT)
    parent.wait(lambda: parent.log.read_text().endswith("\n"), "before it spoke")
    child = psutil.Process(int(parent.log.read_text()))
    assert child.is_running()
    parent.end()
    assert not child.is_running()
    assert not parent.agent.is_running()


def test_a_run_that_is_there_is_not_touched(config, tmp_path):
    (tmp_path / "disturbed").mkdir()
    with pytest.raises(UserError, match="another folder"):
        chaos.put_to_the_test(config, [], tmp_path, chaos.schedule(1, 2, 0), 2, 60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["disturbed"]
