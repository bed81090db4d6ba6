"""Replays through real runs: every slice is scored before it is trained on, and what is done stays."""

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

from tests.study.replay.conftest import DATES, DOMAINS, REPLAY, in_process, rows_of, write_replay
from torchrec_xd.config import load_config, load_run
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.study.replay import replaying
from torchrec_xd.study.replay.design import load_replay
from torchrec_xd.study.replay.history import BINS, SMALLEST_SHARE
from torchrec_xd.study.replay.replaying import replay
from torchrec_xd.training.inference import score
from torchrec_xd.training.train_run import train


def results(folder, out="out"):
    return json.loads((folder / out / "results.json").read_text())


def scores(path):
    return pq.read_table(path)["score_click@post"].to_numpy()


def trained_by_hand(folder, run, dates, rows, before=None):
    """The single model on some slices, its user table of so many rows."""
    config = load_config(folder / "single.yaml")
    schema = config.data_schema
    features = tuple(
        f.model_copy(update={"rows": rows, "hash": "drop"}) if f.column == "user" else f for f in schema.features
    )
    domains = {
        name: d.model_copy(update={"train": tuple(f"{name}/day={date}" for date in dates), "valid": None, "test": None})
        for name, d in schema.domains.items()
    }
    schema = schema.model_copy(update={"features": features, "domains": domains})
    train(config.model_copy(update={"data_schema": schema, "evaluate_on": "train"}), run, continue_from=before)
    return run


def largest(folder, dates):
    return max(int(rows_of(folder, domain, date)[0].max()) for domain in DOMAINS for date in dates)


def scored_by_hand(folder, run, date, out):
    score(run, folder / "feed" / "post" / f"day={date}", out, "post", "last", parts=True)
    return scores(out)


def test_a_slice_has_the_scores_of_the_run_that_was_trained_on_the_slices_before(history, tmp_path):
    rows = {date: 1 + largest(history, DATES[: n + 1]) for n, date in enumerate(DATES)}
    assert rows["2"] < rows["3"] < rows["9"] < rows["10"]
    first = trained_by_hand(history, tmp_path / "2", ["1", "2"], rows["2"])
    second = trained_by_hand(history, tmp_path / "3", ["3"], rows["3"], first)
    third = trained_by_hand(history, tmp_path / "9", ["9"], rows["9"], second)
    for run, place, date in ((first, "warm_up", "3"), (second, "incremental", "9"), (third, "incremental", "10")):
        found = scores(history / "out" / "0" / place / date / "single-post.parquet")
        assert np.array_equal(found, scored_by_hand(history, run, date, tmp_path / "scores.parquet"))
    anew = trained_by_hand(history, tmp_path / "anew", DATES[:4], rows["9"])
    found = scores(history / "out" / "0" / "scratch" / "10" / "single-post.parquet")
    assert np.array_equal(found, scored_by_hand(history, anew, "10", tmp_path / "scores.parquet"))


def test_never_is_one_run_scored_on_all_slices(history, tmp_path):
    for model in ("single", "stage2"):
        run = history / "out" / "0" / "warm_up" / "3" / model
        for date, place in (("3", "warm_up"), ("9", "never"), ("10", "never")):
            found = scores(history / "out" / "0" / place / date / f"{model}-post.parquet")
            assert np.array_equal(found, scored_by_hand(history, run, date, tmp_path / "scores.parquet"))
    assert not list((history / "out" / "0" / "never").rglob("config.yaml"))


def test_policies_differ_in_what_goes_on(history):
    configs = {policy: load_run(history / "out" / "0" / policy / "10" / "stage2") for policy in REPLAY["policies"][1:]}
    user = {
        policy: next(f.rows for f in config.data_schema.features if f.column == "user")
        for policy, config in configs.items()
    }
    warm_up, now = (1 + largest(history, DATES[:n]) for n in (2, 4))
    assert user == {
        "scratch": now,
        "incremental": now,
        "incremental_without_growth": warm_up,
        "incremental_without_state": now,
    }
    assert [config.continue_optimizer for config in configs.values()] == [True, True, True, False]
    for policy, config in configs.items():
        folder = history / "out" / "0" / policy
        assert config.init_from == folder / "10" / "stage1"
        assert config.continue_from == (None if policy == "scratch" else folder / "9" / "stage2")
        assert not (folder / "9" / "stage2").exists()
        assert len(config.data_schema.domains["post"].train) == (4 if policy == "scratch" else 1)


def test_the_numbers_of_a_slice(history):
    found = {(line["model"], line["policy"], line["slice"]): line for line in results(history)["scores"]}
    assert set(found) == {(m, p, d) for m in ("single", "stage2") for p in REPLAY["policies"] for d in DATES[2:]}
    user, label = rows_of(history, "post", "10")
    score_R = scores(history / "out" / "0" / "incremental" / "10" / "single-post.parquet")
    line = found["single", "incremental", "10"]
    whole = binary_metrics(score_R, label, user).as_dict()
    assert {name: line[name] for name in ("auc", "gauc", "logloss", "calibration")} == {
        name: whole[name] for name in ("auc", "gauc", "logloss", "calibration")
    }
    before = np.concatenate([rows_of(history, "post", date)[0] for date in DATES[:4]])
    times = np.bincount(before, minlength=100)[user]
    assert (times == 0).any()
    for group, of in {"new": times == 0, "few": (times > 0) & (times < 10), "many": times >= 10}.items():
        if of.any():
            assert line["activity"][group]["rows"] == of.sum()
            expected = binary_metrics(score_R[of], label[of], user[of]).as_dict()
            assert line["activity"][group]["logloss"] == expected["logloss"]
        else:
            assert group not in line["activity"]
    assert found["single", "never", "3"] == {**found["single", "scratch", "3"], "policy": "never"}


def test_what_the_slices_hold(history):
    said = results(history)
    users = [np.concatenate([rows_of(history, domain, date)[0] for domain in DOMAINS]) for date in DATES]
    seen = np.concatenate(users[:4])
    assert said["tables"]["user"]["unseen"][4] == pytest.approx(1 - np.isin(users[4], seen).mean())
    assert said["tables"]["user"]["unseen"][4] > 0
    assert said["tables"]["user"]["unseen"][0] is None
    assert said["tables"]["user"]["ids"][3] == len(np.unique(seen))
    assert said["tables"]["user"]["rows"] == [1 + largest(history, DATES[: n + 1]) for n in range(5)]
    assert said["tables"]["category"]["rows"] == [6] * 5
    warm_up = np.concatenate(users[:2])  # the index by hand: ids by how frequent they are, ten bins, one for new ones
    ids, times = np.unique(warm_up, return_counts=True)
    bins, passed = {}, 0
    for place in np.argsort(-times, kind="stable"):
        bins[ids[place]] = int(BINS * passed / len(warm_up))
        passed += times[place]
    shares = [np.bincount([bins.get(u, BINS) for u in of], minlength=BINS + 1) / len(of) for of in (warm_up, users[4])]
    q, p = (np.maximum(share, SMALLEST_SHARE) for share in shares)
    assert said["drift"]["user"][4] == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert said["drift"]["user"][:2] == [None, None]
    age = said["drift"]["age"][4]
    assert 0 <= age < 0.5 < said["drift"]["user"][4]


def test_costs_are_those_of_the_trainings(history):
    rows = {(c["policy"], c["slice"], c["model"]): c["rows"] for c in results(history)["costs"]}
    assert rows[None, "3", "single"] == 2 * 72
    assert rows["incremental", "10", "single"] == 72
    assert rows["scratch", "10", "single"] == 4 * 72
    assert rows["scratch", "10", "stage1"] == 4 * 4 * 72
    assert not any(policy == "never" for policy, _, _ in rows)
    assert all(cost["cpu_seconds"] > 0 for cost in results(history)["costs"])


def test_the_second_time_nothing_is_done(history, monkeypatch):
    said = results(history)
    monkeypatch.setattr(replaying, "work", lambda *_, **__: pytest.fail("something was run"))
    assert replay(history / "replay.yaml", history / "out") == {}
    assert results(history) == said


SHORT = {
    "models": {"single": REPLAY["models"]["single"]},
    "policies": ["incremental", "never"],
    "reference": "incremental",
}


def test_slices_may_come_later(history, tmp_path, monkeypatch):
    monkeypatch.setattr(replaying, "work", in_process)
    early = {domain: [f"{domain}/day={date}" for date in DATES[:4]] for domain in DOMAINS}
    assert replay(write_replay(history, {**SHORT, "slices": early}, "early"), tmp_path / "out") == {}
    begun = tmp_path / "out" / "0" / "incremental" / "10" / "single"  # as a kill leaves it before it is a run
    begun.mkdir(parents=True)
    (begun / "plan.json").write_text("{}")
    assert replay(write_replay(history, SHORT, "early"), tmp_path / "out") == {}
    for place in ("incremental/9", "incremental/10", "never/10"):
        name = f"0/{place}/single-post.parquet"
        assert (tmp_path / "out" / name).read_bytes() == (history / "out" / name).read_bytes()


def test_a_killed_replay_goes_on_bit_by_bit(history, tmp_path):
    path, out = write_replay(history, SHORT, "short"), tmp_path / "out"
    words = [sys.executable, "-m", "torchrec_xd.cli", "replay", str(path), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not (out / "0" / "incremental" / "9" / "single" / "config.yaml").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    warm_up = out / "0" / "warm_up" / "3"
    assert (warm_up / "step.json").exists()
    when = (warm_up / "single" / "metrics.json").stat().st_mtime_ns
    assert not (out / "results.json").exists()
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=240)
    assert (warm_up / "single" / "metrics.json").stat().st_mtime_ns == when
    for place in ("warm_up/3", "incremental/9", "incremental/10", "never/9", "never/10"):
        name = f"0/{place}/single-post.parquet"
        assert (out / name).read_bytes() == (history / "out" / name).read_bytes()
    said, whole = ({k: r for r in results(history, o)["scores"] if (k := key(r))} for o in (out, history / "out"))
    assert said == {k: whole[k] for k in said}
    assert len(said) == 2 * 3


def key(line):
    return (line["model"], line["policy"], line["slice"])


def test_the_page_opens_in_a_browser(history, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    page = history / "out" / "results.html"
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    shown = subprocess.run(
        [browser, *arguments, page.as_uri()], capture_output=True, check=True, text=True, timeout=240
    ).stdout
    assert 'src="http' not in page.read_text()
    assert shown.count('class="plotly-graph-div') == 2 * (2 + 3) + 3
    assert shown.count('class="main-svg"') >= 2 * (2 + 3) + 3  # drawn, not only declared


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policies": ["never", "daily"], "reference": "never"}, "'policies.1': Input should be 'never', 'scratch'"),
        ({"warm_up": 5}, "warm_up: 5 of 5 slices leave none to be scored; at most 4"),
        ({"reference": "scratch", "policies": ["never", "incremental"]}, "reference: policy 'scratch' is not known"),
        ({"grows": []}, "incremental_without_growth needs grows"),
        ({"grows": ["age"]}, "grows: 'age' is no feature with a table; these are: user, hist"),
        ({"slices": {"post": "post/day=*"}}, "slices: domain 'items' has none; give its pattern or its list"),
        (
            {"slices": {**REPLAY["slices"], "post": ["post/day=1", "post/day=3", "post/day=2"]}},
            "slices.post: '2' comes after '3'; list them from the oldest to the newest",
        ),
        (
            {"slices": {**REPLAY["slices"], "post": ["post/day=1", "post/day=2", "post/day=1/part.parquet"]}},
            "slices.post: '1' is there twice (post/day=1, post/day=1/part.parquet); every slice comes once",
        ),
        (
            {"slices": {**REPLAY["slices"], "post": [f"post/day={date}" for date in ("1", "2", "3", "10")]}},
            "slices: domain 'post' has no '9', which 'items' has",
        ),
        ({"slices": {**REPLAY["slices"], "post": "post/*/*"}}, "a pattern has one '*', which stands for the date"),
        ({"world": {"preset": "feed_days"}}, "give either schema: FILE, with slices, or world"),
        ({"samples": 20}, "samples: 20 resamples cannot decide 8 comparisons"),
    ],
)
def test_what_is_no_replay_is_refused_before_anything_is_written(history, tmp_path, change, said):
    with pytest.raises(UserError) as error:
        replay(write_replay(history, change, "wrong"), tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_slice_without_rows_is_refused(history, tmp_path):
    path = history / "feed" / "empty" / "day=9" / "part.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(history / "feed" / "video" / "day=9" / "part.parquet")
    pq.write_table(table.slice(0, 0), path)
    listed = [f"{'empty' if date == '9' else 'video'}/day={date}" for date in DATES]
    with pytest.raises(UserError, match=r"slices.video: '9' \(empty/day=9\) has no rows; write it again"):
        replay(write_replay(history, {"slices": {**REPLAY["slices"], "video": listed}}, "wrong"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_has_the_last_word(tmp_path):
    own = {**REPLAY["models"]["single"], "set": ["trainer.epochs=1"], "set_continued": ["trainer.epochs=2"]}
    path = write_replay(tmp_path, {"models": {"single": own}})
    model = load_replay(path, assign=("trainer.epochs=3",)).models["single"]
    assert model.assign == ("trainer.epochs=1", "trainer.epochs=3")
    assert model.continued == ("trainer.epochs=2", "trainer.epochs=3")
    with pytest.raises(UserError, match="--set seed=3: every run has a seed of its own"):
        load_replay(path, assign=("seed=3",))


@pytest.mark.parametrize(
    ("change", "assign", "said"),
    [
        ({"warm_up": 3}, (), "replay.warm_up was 2, is 3"),
        ({}, ("optimizer.dense.lr=0.5",), "models.single.set was [], is ['optimizer.dense.lr=0.5']"),
    ],
)
def test_a_folder_of_another_replay_is_refused(history, change, assign, said):
    before = sorted((history / "out").rglob("*"))
    with pytest.raises(UserError, match="holds another replay") as error:
        replay(write_replay(history, change, "wrong"), history / "out", assign=assign)
    assert said in str(error.value)
    assert sorted((history / "out").rglob("*")) == before


def test_a_folder_of_other_things_is_refused(history):
    with pytest.raises(UserError, match="holds no replay but"):
        replay(history / "replay.yaml", history / "feed")
