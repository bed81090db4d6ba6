"""Studies through real runs: what is there is not run again, what fails takes nothing along."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.study.conftest import STUDY, write_study
from tests.support.feeds import write_feed
from tests.support.raw_keys import raw_schema_at, write_raw
from torchrec_xd.cli.app import app
from torchrec_xd.cli.studies import compare
from torchrec_xd.config import load_config
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.significance import holm, paired_bootstrap
from torchrec_xd.study import comparison
from torchrec_xd.study.comparison import commands, run_study
from torchrec_xd.study.design import load_study, select
from torchrec_xd.study.pages import save_results
from torchrec_xd.study.pool import work
from torchrec_xd.study.worker import CellJob

CELLS = {(model, seed) for model in STUDY["models"] for seed in range(2)}


def finished(lab, out=None):
    """Run folder to when it was finished."""
    out = out or lab.parent / "out"
    return {path.parent.relative_to(out): path.stat().st_mtime_ns for path in out.rglob("metrics.json")}


def results(lab, out="out"):
    return json.loads((lab.parent / out / "results.json").read_text())


def test_every_cell_is_a_run_of_its_own_seed(lab):
    assert {tuple(folder.parts) for folder in finished(lab)} == {("feed", str(seed), model) for model, seed in CELLS}
    first, second = (lab.parent / "out" / "feed" / seed / "bottom" / "config.yaml" for seed in "01")
    assert load_config(second).seed == 1
    assert load_config(first).optimizer.dense.lr == 0.02
    assert first.read_text().replace("\nseed: 0", "\nseed: 1") == second.read_text()


def test_a_model_parent_the_run_of_its_own_seed(lab):
    for seed in "01":
        manifest = json.loads((lab.parent / "out" / "feed" / seed / "mkt" / "transfer.json").read_text())
        assert f"feed/{seed}/stage1/checkpoints" in manifest["from"]


def test_results_say_what_the_runs_say(lab):
    found = results(lab)
    assert found["reference"] == "single"
    assert {(cell["model"], cell["seed"]) for cell in found["cells"]} == {c for c in CELLS if c[0] != "stage1"}
    for cell in found["cells"]:
        said = json.loads(
            (lab.parent / "out" / "feed" / str(cell["seed"]) / cell["model"] / "metrics.json").read_text()
        )
        for metric in ("auc", "gauc", "logloss"):
            assert cell[metric] == said["eval"]["click@post"][metric]
        assert cell["groups"]["activity"] == said["slices"]["click@post"]["activity"]
        assert cell["peak_memory_bytes"] > 50_000_000
        assert cell["rows"] == 200
    # user, hist's items and category; context; specific: 40 + 60 + 6 + 24 + 5 + 7 rows of 4
    [single] = [cell for cell in found["cells"] if cell["model"] == "single" and not cell["seed"]]
    assert single["parameters"]["tables"] == 4 * (40 + 60 + 6 + 24 + 5 + 7)
    assert single["parameters"]["frozen"] == 0
    assert all(cell["parameters"]["frozen"] > 0 for cell in found["cells"] if cell["model"] == "mkt")


def test_verdicts_are_those_of_the_scores(lab):
    rows = pq.read_table(lab.parent / "feed" / "post" / "test.parquet")
    label, user = rows["click"].to_numpy().astype(float), rows["user"].to_numpy()

    def scores(model):
        files = [lab.parent / "out" / "feed" / seed / model / "scores.parquet" for seed in "01"]
        return np.stack([pq.read_table(file)["score_click@post"].to_numpy() for file in files])

    found = {(line["model"], line["metric"]): line for line in results(lab)["verdicts"]}
    wanted = {
        (model, metric): paired_bootstrap(
            scores(model), scores("single"), label, user, metric=metric, samples=STUDY["samples"]
        )
        for model in ("mkt", "bottom")
        for metric in ("auc", "gauc", "logloss")
    }
    assert set(found) == set(wanted)
    adjusted = dict(zip(wanted, holm([line.p for line in wanted.values()]), strict=True))
    for key, line in wanted.items():
        assert found[key]["delta"] == pytest.approx(line.delta)
        assert (found[key]["low"], found[key]["high"]) == pytest.approx((line.low, line.high))
        assert found[key]["p_holm"] == pytest.approx(adjusted[key])
        assert found[key]["users"] == line.users
        assert (found[key]["verdict"] == "can't tell") == (adjusted[key] >= 0.05)


def test_the_second_time_nothing_is_run(lab, monkeypatch):
    before, said = finished(lab), results(lab)
    monkeypatch.setattr(comparison, "work", lambda *_, **__: pytest.fail("something was run"))
    assert run_study(load_study(lab), lab, lab.parent / "out") == {}
    assert finished(lab) == before
    assert results(lab) == said


def test_a_removed_cell_is_run_again_alone(lab):
    before, said = finished(lab), results(lab)
    again = lab.parent / "out" / "feed" / "1" / "single"
    shutil.rmtree(again)
    assert run_study(load_study(lab), lab, lab.parent / "out") == {}
    changed = {folder for folder, when in finished(lab).items() if before[folder] != when}
    assert changed == {again.relative_to(lab.parent / "out")}
    assert results(lab)["verdicts"] == said["verdicts"]  # the same bits: the seed decides


def test_another_config_is_refused_before_anything_is_run(lab):
    before = finished(lab)
    study = select(load_study(lab), assign=("optimizer.dense.lr=0.5",))
    with pytest.raises(UserError, match=r"out/feed/0/\w+ was begun .*optimizer.dense.lr was 0.01, is 0.5.*delete"):
        run_study(study, lab, lab.parent / "out")
    assert finished(lab) == before


def test_a_run_whose_first_stage_is_gone_or_trained_again_is_refused(lab, tmp_path):
    """Its metrics would be of knowledge that no run of the study holds any more."""
    out, before = tmp_path / "out", lab.parent / "out"
    study = select(load_study(lab), models=["mkt"], seeds=1)
    shutil.copytree(before / "feed" / "0", out / "feed" / "0")
    shutil.rmtree(out / "feed" / "0" / "stage1")
    with pytest.raises(UserError, match=r"0/mkt started from \S+/0/stage1, which is not finished: delete \S+/0/mkt to"):
        run_study(study, lab, out)
    shutil.copytree(before / "feed" / "1" / "stage1", out / "feed" / "0" / "stage1")  # as if trained again
    config = out / "feed" / "0" / "stage1" / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 1", "\nseed: 0"))
    with pytest.raises(UserError, match=r"0/mkt started from \S+/0/stage1, which was trained again since: delete"):
        run_study(study, lab, out)
    shutil.rmtree(out / "feed" / "0" / "mkt")
    assert run_study(study, lab, out) == {}
    shutil.rmtree(out / "feed" / "0" / "stage1" / "checkpoints")  # to save disk
    assert run_study(study, lab, out) == {}


def test_a_run_that_was_stopped_while_it_was_measured_has_no_cost(lab, tmp_path):
    """What trained it is gone; nothing is no speed to average."""
    shutil.copytree(lab.parent / "out" / "feed", tmp_path / "feed")
    (tmp_path / "feed" / "1" / "single" / "metrics.json").unlink()
    assert run_study(select(load_study(lab), models=["single"]), lab, tmp_path) == {}
    first, second = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert (second["rows_per_second"], second["peak_memory_bytes"]) == (None, None)
    assert second["parameters"] == first["parameters"]
    speed = f"{first['rows_per_second']:,.0f} | {first['peak_memory_bytes'] / 2**20:,.0f} |"
    assert speed in (tmp_path / "results.md").read_text()


def test_what_may_change_when_a_run_resumes_may_change_in_a_study(lab, monkeypatch):
    monkeypatch.setattr(comparison, "work", lambda *_, **__: pytest.fail("something was run"))
    free = ("trainer.timeout_s=60", "trainer.compile_cache=cache", "loader.retry_s=1")
    assert run_study(select(load_study(lab), assign=free), lab, lab.parent / "out") == {}
    with pytest.raises(UserError, match=r"trainer\.epochs was \d, is 7"):
        run_study(select(load_study(lab), assign=("trainer.epochs=7",)), lab, lab.parent / "out")


def test_a_study_on_raw_keys_is_reported_again(tmp_path, monkeypatch):
    """Its runs write down how many rows their vocabularies have; the configs leave that open."""
    write_raw(tmp_path / "feed", 0)
    change = {"models": {"single": STUDY["models"]["single"]}, "seeds": 1}
    path = write_study(tmp_path, change, schema=raw_schema_at(tmp_path / "feed"))
    assert run_study(load_study(path), path, tmp_path / "out") == {}
    monkeypatch.setattr(comparison, "work", lambda *_, **__: pytest.fail("something was run"))
    assert run_study(load_study(path), path, tmp_path / "out") == {}
    path = write_study(tmp_path, change, schema=raw_schema_at(tmp_path / "feed", capacity=1000))
    with pytest.raises(UserError, match=r"schema\.features\.user\.vocabulary\.capacity was None, is 1000"):
        run_study(load_study(path), path, tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "test"])
def test_runs_on_other_data_are_refused(lab, split):
    """The labels of the same rows turned round: the old verdicts would stand next to other numbers."""
    file = lab.parent / "feed" / "post" / f"{split}.parquet"
    content = file.read_bytes()
    table = pq.read_table(file)
    flipped = pc.subtract(pa.scalar(1, table["click"].type), table["click"])
    pq.write_table(table.set_column(table.schema.get_field_index("click"), "click", flipped), file)
    try:
        with pytest.raises(UserError, match=r"trained or measured on other data:\n") as error:
            run_study(load_study(lab), lab, lab.parent / "out")
        assert f"{split} files of domain 'post': post/{split}.parquet was written again" in str(error.value)
    finally:
        file.write_bytes(content)


def test_what_fails_takes_along_only_what_starts_from_it(tmp_path):
    write_feed(tmp_path / "feed")
    models = {**STUDY["models"], "stage1": {**STUDY["models"]["stage1"], "set": ["optimizer.dense.lr=1.0e+30"]}}
    path = write_study(tmp_path, {"models": models, "seeds": 1})
    with pytest.raises(UserError, match="2 runs failed") as error:  # exit code 2
        compare(path, tmp_path / "out", jobs=2)
    assert "feed/0/stage1: the loss became" in str(error.value)
    assert "feed/0/mkt: not started: it starts from feed/0/stage1" in str(error.value)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {cell["model"] for cell in found["cells"]} == {"single", "bottom"}
    assert set(found["failed"]) == {"feed/0/stage1", "feed/0/mkt"}
    assert {line["model"] for line in found["verdicts"]} == {"bottom"}


def test_a_process_that_dies_takes_no_other_job_along(lab, tmp_path):
    config = load_config(lab.parent / "single.yaml", ["trainer.epochs=3"])
    jobs = [CellJob("first", config, tmp_path / "first"), CellJob("second", config, tmp_path / "second")]
    ended = {}

    def take():
        for process in multiprocessing.active_children():
            if process.name == "first":
                process.kill()
        return jobs.pop(0) if jobs else None

    work(take, lambda job, fault: ended.update({job.name: fault}), workers=2, logs=tmp_path / "logs")
    assert "died with exit code -9" in ended["first"]
    assert ended["second"] is None


def test_a_stopped_study_goes_on(lab, tmp_path):
    out, longer = tmp_path / "out", ("trainer.epochs=15",)
    arguments = [sys.executable, "-m", "torchrec_xd.cli", "compare", str(lab), "--out", str(out), "--seeds", "1"]
    arguments += ["--models", "single", "--set", *longer]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (out / "feed" / "0" / "single" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert "the same command goes on" in printed
    assert not finished(lab, out)
    study = select(load_study(lab), models=["single"], seeds=1, assign=longer)
    assert run_study(study, lab, out) == {}
    [run] = finished(lab, out)
    steps = json.loads((out / run / "metrics.json").read_text())["train"]["steps"]
    assert 0 < steps < 60  # what was left of 15 epochs of 4


def test_the_list_is_one_command_per_run_in_an_order_that_works(lab, tmp_path):
    lines = commands(select(load_study(lab), seeds=1), lab, tmp_path)
    marks = [i for i, line in enumerate(lines) if line.startswith("#")]
    assert len(lines) == 5
    assert marks == [3]
    assert "feed/0/mkt" in lines[4]
    words = lines[4].split()
    config = load_config(tmp_path / "configs" / "feed" / "0" / "mkt.yaml")
    assert words[:3] == ["torchx", "run", "launch/components.py:train"]
    assert config.init_from == tmp_path / "feed" / "0" / "stage1"
    assert commands(load_study(lab), lab, lab.parent / "out") == []


def test_the_page_and_the_tables(lab):
    text = (lab.parent / "out" / "results.md").read_text()
    assert text.startswith("# study\n")
    for part in ("| single | 0.", "| mkt |", "Δ AUC", "By activity", "peak memory", "over seeds (0 to 1)"):
        assert part in text
    assert "stage1" not in text
    for name in ("results.md", "results.html"):
        assert "; 40 users) can't tell" in (lab.parent / "out" / name).read_text().replace("&#x27;", "'")


def test_the_same_runs_against_another_reference(lab):
    out = lab.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in [*out.rglob("metrics.json"), *out.glob("results.*")]}
    done = CliRunner().invoke(app, ["compare", str(lab), "--out", str(out), "--reference", "mkt"])
    assert done.exit_code == 0, done.output
    [line] = [line for line in done.output.splitlines() if "single" in line and "logloss" in line]
    assert "│    40 │ can't tell │" in line
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said, other = results(lab), json.loads((out / "results-mkt.json").read_text())
    assert (other["reference"], other["cells"]) == ("mkt", said["cells"])
    of = {(v["model"], v["metric"]): v for v in said["verdicts"]}
    turned = {(v["model"], v["metric"]): v for v in other["verdicts"]}
    for metric in ("auc", "gauc", "logloss"):
        assert turned["single", metric]["delta"] == pytest.approx(-of["mkt", metric]["delta"])
    with pytest.raises(UserError, match="model 'me' is not known; known are: mkt, single"):
        load_study(lab, "me")


def test_several_data_sets_side_by_side(lab, tmp_path):
    found = results(lab)
    twice = {**found, "tasks": {**found["tasks"], "other": "click@post"}, "oracle": {"feed": {"auc": 0.9}}}
    twice["cells"] = [*found["cells"], *({**row, "data": "other"} for row in found["cells"])]
    verdict = {"model": "mkt", "data": "feed", "metric": "auc", "verdict": "better"}
    chosen = ["a.lr=0.0123456", "a.rows=100000", "a.lr=0.2", "a.kind=mean"]
    best = {data: {"mkt": chosen} for data in ("feed", "other")}
    twice["tuned"] = {"trials": 3, "on": {"feed": "feed", "other": "feed"}, "best": best}
    twice["verdicts"] = [verdict | {"delta": 0.1, "low": 0.05, "high": 0.2, "p_holm": 0.01, "users": 40}]
    save_results(twice, tmp_path / "both")
    assert "| mkt | a.lr=0.0123; a.rows=100000; a.lr=0.2; a.kind=mean |" in (tmp_path / "both.md").read_text()
    lines = (tmp_path / "both.md").read_text().split("## All data sets")[1].split("## feed")[0].splitlines()
    [mkt, speed] = [line.split(" | ") for line in lines if line.startswith("| mkt |")]
    assert mkt[1].endswith(" better")
    assert mkt[1].removesuffix(" better") == mkt[2].removesuffix(" |")
    assert "| oracle | 0.9000 | – |" in lines
    assert speed[1].replace(",", "").isdigit()
    assert "All data sets" not in (lab.parent / "out" / "results.md").read_text()


def test_the_page_opens_in_a_browser(lab, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH; CI installs Debian's package")
    page = lab.parent / "out" / "results.html"
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run([browser, *arguments], capture_output=True, check=True, text=True, timeout=120).stdout
    assert 'src="http' not in page.read_text()
    assert shown.count('class="plotly-graph-div') >= 5
    assert shown.count('class="main-svg"') >= 5  # drawn, not only declared
