"""A/B tests over days: what arms learn from, what is reported, what is refused; a kill takes nothing along."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from torchrec_xd.cli.app import app
from torchrec_xd.errors import UserError
from torchrec_xd.settings import load_yaml
from torchrec_xd.shipped import CONFIGS
from torchrec_xd.study.simulation.arm_days import run_arm_day
from torchrec_xd.study.simulation.design import load_simulation
from torchrec_xd.study.simulation.measures import gini, top_share
from torchrec_xd.study.simulation.simulate import run_simulation

SMALL = CONFIGS / "studies" / "simulate_small.yaml"
ARMS = ("single", "mkt", "random")


def write(folder, **changes):
    """The small study with changes, next to the shipped ones' configs."""
    content = {**load_yaml(SMALL), **changes}
    for arm in content["arms"].values():
        if "config" in arm and arm["config"].startswith("../"):
            arm["config"] = str((SMALL.parent / arm["config"]).resolve())
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def inline(take, finish, *, workers, logs):
    """Works off jobs in this process."""
    while (job := take()) is not None:
        run_arm_day(job)
        finish(job, None)


def run(path, out, **given):
    return run_simulation(load_simulation(path, **given), path, out, work_off=inline)


def files(out):
    """What a simulation makes, as bytes; logs of runs tell the time."""
    kept = [*out.rglob("*.parquet"), *out.rglob("*.npz"), *out.rglob("day.json"), out / "results.json"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The small simulation, done; its runs are in `out`."""
    folder = tmp_path_factory.mktemp("lab")
    path = write(folder)
    run(path, folder / "out")
    return path


def logged(lab, arm, day):
    return pq.read_table(lab.parent / "out" / "0" / arm / f"day=00{day}" / "log.parquet", partitioning=None)


def test_every_number_of_a_day_is_that_of_its_log(lab):
    results = json.loads((lab.parent / "out/results.json").read_text())
    assert [(line["arm"], line["day"]) for line in results["daily"]] == [(arm, day) for day in (0, 1) for arm in ARMS]
    for line in results["daily"]:
        log = logged(lab, line["arm"], line["day"])
        click, prob, score = (log[name].to_numpy().astype(np.float64) for name in ("click", "prob", "score"))
        assert line["impressions"] == len(log) == 3 * len(np.unique(np.cumsum(log["position"].to_numpy() == 0)))
        assert line["clicks"] == click.sum()
        assert (line["ctr"], line["expected"]) == pytest.approx((click.mean(), prob.mean()))
        assert line["regret"] == pytest.approx(line["best"] - prob.mean())
        assert line["users"] == len(np.unique(log["user_id"]))
        assert line["best"] > line["expected"]
        items = len(np.unique(log["target_item"]))
        known = json.loads((lab.parent / "out/0/world/days.json").read_text())
        [living] = [day["items"] for day in known if (day["day"], day["domain"]) == (2 + line["day"], "target")]
        assert line["coverage"] == items / living
        if line["arm"] == "random":
            assert line["calibration"] is None
            assert line["random_traffic"] is None
            assert log["explored"].to_numpy().all()
        else:
            assert line["calibration"] == pytest.approx(score.mean() / prob.mean())
            assert 0.4 < line["random_traffic"]["auc"] < 1
            assert 0.02 < log["explored"].to_numpy().mean() < 0.25
    users = [set(logged(lab, arm, day)["user_id"].to_pylist()) for arm in ARMS for day in (0, 1)]
    assert not (users[0] | users[1]) & (users[2] | users[3] | users[4] | users[5])


def test_the_difference_is_that_of_all_days_so_far(lab):
    results = json.loads((lab.parent / "out/results.json").read_text())
    lines = [line for line in results["differences"] if (line["arm"], line["seed"]) == ("random", 0)]
    for day, line in enumerate(lines):
        rates = {}
        for arm in ("random", "single"):
            clicks = np.concatenate([logged(lab, arm, d)["click"].to_numpy() for d in range(day + 1)])
            probs = np.concatenate([logged(lab, arm, d)["prob"].to_numpy().astype(float) for d in range(day + 1)])
            rates[arm] = clicks.mean(), probs.mean()
        assert line["difference"] == pytest.approx(rates["random"][0] - rates["single"][0])
        assert line["true_difference"] == pytest.approx(rates["random"][1] - rates["single"][1])
        assert line["low"] < line["difference"] < line["high"]
    assert {(line["arm"], line["metric"]) for line in results["verdicts"]} == {
        (arm, metric) for arm in ("mkt", "random") for metric in ("ctr", "expected")
    }
    [verdict] = [line for line in results["verdicts"] if (line["arm"], line["metric"]) == ("random", "expected")]
    assert verdict["delta"] == pytest.approx(lines[-1]["true_difference"])
    assert verdict["low"] < verdict["delta"] < verdict["high"]


def trained_on(lab, out, model):
    """Files that a model of the last day was trained on."""
    config = load_yaml(lab.parent / out / "0" / "mkt" / "day=001" / model / "config.yaml")
    return config["schema"]["domains"]


def test_arms_learn_from_the_warm_up_and_then_from_their_own_logs(lab):
    domains = trained_on(lab, "out", "mkt")
    assert domains["target"]["train"] == ["world/target/train/day=001/part-00000.parquet", "mkt/day=000/log.parquet"]
    assert domains["target"]["test"] == "world/target/train/day=003/part-00000.parquet"
    assert trained_on(lab, "out", "mkt_pretrain")["source"]["train"] == [
        f"world/source/train/day=00{day}/part-00000.parquet" for day in (1, 2)
    ]
    transfer = json.loads((lab.parent / "out/0/mkt/day=001/mkt/transfer.json").read_text())
    assert "mkt/day=001/mkt_pretrain/checkpoints" in transfer["from"]
    assert not (lab.parent / "out/0/mkt/day=000/mkt").exists(), "yesterday's weights are not kept"


def test_what_is_done_is_not_done_again_and_what_is_missing_is_made_the_same(lab, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(lab.parent / "out", out)
    before = files(out)
    for half in ("mkt/day=001/day.json", "single/day=001/log.parquet", "single/day=001/day.json"):
        (out / "0" / half).unlink()
    shutil.rmtree(out / "0/single/day=001/single")
    done = []

    def counted(take, finish, **given):
        def noted(job, fault):
            done.append(job.name)
            finish(job, fault)

        inline(take, noted, **given)

    run_simulation(load_simulation(lab), lab, out, work_off=counted)
    assert sorted(done) == ["0/mkt/day=001", "0/single/day=001"]
    assert files(out) == before


def test_a_shared_log_waits_for_all_arms_and_is_read_by_all(lab, tmp_path):
    arms = {"single": {"config": "../world/single.yaml"}, "oracle": {"policy": "oracle"}}
    path = write(tmp_path, arms=arms, logs="shared")
    results = run(path, tmp_path / "out")
    domains = load_yaml(tmp_path / "out/0/single/day=001/single/config.yaml")["schema"]["domains"]
    assert domains["target"]["train"][1:] == ["single/day=000/log.parquet", "oracle/day=000/log.parquet"]
    oracle = [line for line in results["daily"] if line["arm"] == "oracle"]
    assert [line["regret"] for line in oracle] == pytest.approx([0, 0], abs=1e-6)


def test_models_go_on_from_yesterdays_and_so_do_their_teachers(lab, tmp_path):
    arms = {
        **load_yaml(SMALL)["arms"],
        "source": {"config": "../world/finetune_pretrain.yaml", "shown": False},
        "finetune": {"config": "../world/finetune.yaml", "parent": "source"},
    }
    path = write(tmp_path, arms=arms, training="continue", days=3)
    run(path, tmp_path / "out")
    last = tmp_path / "out" / "0"
    for arm, models in {"single": ["single"], "mkt": ["mkt", "mkt_pretrain"], "finetune": ["finetune"]}.items():
        folder = last / arm / "day=002"
        assert sorted(found.name for found in folder.iterdir() if found.is_dir()) == models
        for model in models:
            config = load_yaml(folder / model / "config.yaml")
            assert config["schema"]["domains"]["target"]["train"] == [f"{arm}/day=001/log.parquet"]
            continued = json.loads((folder / model / "continued.json").read_text())
            assert f"{arm}/day=001/{model}/checkpoints" in continued["from"]
            assert continued["step"] > 2
    taught = load_yaml(last / "mkt/day=002/mkt/config.yaml")
    assert taught["init_from"].endswith("mkt/day=002/mkt_pretrain")
    assert "go on from yesterday's" in (tmp_path / "out/results.md").read_text()


def wait_for(process, seen):
    patience = time.monotonic() + 240
    while not seen() and time.monotonic() < patience:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_a_command_that_is_asked_to_stop_says_how_to_go_on(lab, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torchrec_xd.cli", "simulate", str(lab), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    stopped = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(stopped, lambda: list(out.glob("logs/worker-*.txt")))
        stopped.send_signal(signal.SIGTERM)
        _, said = stopped.communicate(timeout=120)
    finally:
        stopped.kill()
    assert stopped.returncode == 75
    assert "stopped with 1 days of arms under way; the same command goes on" in " ".join(said.split())


@pytest.mark.slow
def test_a_kill_takes_nothing_along(lab, tmp_path):
    """The command and its workers are killed in the middle of a day; the same command ends with the same bytes."""
    out = tmp_path / "out"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "torchrec_xd.cli", "simulate", str(lab), "--out", str(out), "--jobs", "2"]
    given = {"env": {**os.environ, "PYTHONPATH": root}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen(command, **given)
    try:
        wait_for(killed, lambda: list(out.glob("0/*/day=000/day.json")))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    done = [path.relative_to(out) for path in out.rglob("day.json")]
    assert 0 < len(done) < 6
    subprocess.run(command, check=True, timeout=400, **given)
    wanted = files(lab.parent / "out")
    found = files(out)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"days": 0}, "'days': .*greater than or equal to 1"),
        ({"places": 11}, "places: 11 of 10 candidates cannot be shown; raise candidates, or lower places"),
        ({"candidates": 500, "places": 3}, "candidates: 500 of a world with 150 items; lower it"),
        (
            {"arms": {"random": {"policy": "random"}}, "reference": "random"},
            "arms: 1 serve users, a test has two or more",
        ),
        ({"reference": "best"}, "reference: arm 'best' is not known; known are: single, mkt, random"),
        ({"world": {"preset": "helps"}}, "preset is 'helps'; worlds over days are: feed_days, homepage_days"),
        ({"world": {"preset": "feed_days", "days": 9}}, "'days' is decided by the study"),
        ({"world": {"preset": "feed_days", "speed": 9}}, "preset 'feed_days': unknown key 'speed'"),
        ({"logs": "theirs"}, "'logs': .*'own' or 'shared'"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"config": "nothing.yaml"}, r"nothing.yaml: no such file"),
        ({"config": "wrong.yaml"}, "unknown model 'wronk'"),
        ({"config": "../world/single.yaml", "set": ["model.width=3"]}, "unknown key 'model.width'"),
        ({"config": "../world/finetune_pretrain.yaml"}, r"arms.new: does not predict 'click@target' but click@source"),
        ({"config": "../world/finetune.yaml"}, "init_from is .*, a run outside of the study: set parent: NAME"),
        ({"config": "../world/mkt_finetune.yaml", "parent": "single"}, "starts from a run of 'mkt_pretrain'"),
        ({"config": "../world/single.yaml", "parent": "sinlge"}, "arms.new.parent: model 'sinlge' is not known"),
        ({"policy": "oracle", "set": ["a=1"]}, "policy oracle trains no model: remove parent, set and shown"),
        ({}, "give either config: FILE, a model that is trained, or policy: oracle or random"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_before_anything_is_written(tmp_path, arm, message):
    (tmp_path / "wrong.yaml").write_text("model: {name: wronk}\n")
    arms = {"single": {"config": "../world/single.yaml"}, "new": arm}
    with pytest.raises(UserError, match=message):
        run(write(tmp_path, arms=arms), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(lab, tmp_path):
    out = lab.parent / "out"
    before = files(out)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", places=2, set=["trainer.epochs=2", "loader.batch_size=256"])
    with pytest.raises(UserError, match=r"holds another simulation \(places, set, configs differ\)"):
        run(other, out)
    assert files(out) == before
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run(lab, tmp_path)


def test_inequality_by_hand():
    """Of 4 items 1 and 3 impressions: sum of (2 i - n - 1) x / (n sum x) = (1 * 1 + 3 * 3) / (4 * 4)."""
    assert gini(np.array([3, 1]), 4) == 10 / 16
    assert gini(np.array([5, 5, 5]), 3) == 0
    assert top_share(np.array([1, 6, 3]), 150) == pytest.approx(9 / 10)  # two of 150


def test_the_page_opens_in_a_browser(lab, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    page = lab.parent / "out" / "results.html"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run([browser, *options], capture_output=True, check=True, text=True, timeout=120).stdout
    assert 'src="http' not in page.read_text()
    assert shown.count('class="plotly-graph-div') == 2 + 8  # two arms against the reference, and every number by day
    assert shown.count('class="main-svg"') >= 10  # drawn, not only declared
    assert "random less single, over all days so far" in shown


def test_the_command_says_what_is_better(lab, monkeypatch):
    """All of it is done already."""
    answer = CliRunner().invoke(app, ["simulate", str(lab), "--out", str(lab.parent / "out")])
    assert answer.exit_code == 0, answer.output
    assert "results in" in answer.output
    assert "expected" in answer.output
    markdown = (lab.parent / "out/results.md").read_text()
    assert "| random |" in markdown
    assert "A/B difference" in markdown


@pytest.mark.parametrize("name", ["feed", "homepage", "small"])
def test_shipped_simulations_are_as_they_must_be(name):
    simulation = load_simulation(CONFIGS / "studies" / f"simulate_{name}.yaml")
    assert len(simulation.served) >= 3
    assert simulation.chain("random") == ()
