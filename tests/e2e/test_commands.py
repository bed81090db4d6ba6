"""Through the real command, in real processes, on real Parquet."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from onnx import numpy_helper

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN

ROOT = Path(__file__).parents[2]
MODELS = {
    "mkt_pretrain": PRETRAIN,
    "mkt_finetune": FINETUNE,
    "single": {"name": "single", "widths": [8, 4]},
}


def write_config(folder, model, change=None, **settings):
    content = {
        "schema": schema_at(folder / "feed"),
        "model": {**MODELS[model], **(change or {})},
        "loader": {"batch_size": 128},
        "optimizer": {"tables": {"lr": 0.2}, "dense": {"lr": 0.01}},
        "trainer": {"epochs": 6, "log_every": 5, "threads": 1},
        **settings,
    }
    path = folder / f"{model}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A feed, and a finished stage-1 and stage-2 run on it."""
    folder = tmp_path_factory.mktemp("world")
    write_feed(folder / "feed")
    command("train", write_config(folder, "mkt_pretrain"), "--run-dir", folder / "mem")
    finetune = write_config(folder, "mkt_finetune", domains=["post"], init_from=str(folder / "mem"))
    command("train", finetune, "--run-dir", folder / "tem")
    return folder


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_run_leaves_all_that_it_promises(world):
    for run, tasks in {"mem": ["click@items", "click@video", "click@post"], "tem": ["click@post"]}.items():
        content = metrics(world / run)
        assert list(content["eval"]) == tasks
        assert content["split"] == "test"
        assert content["train"]["steps"] > 0
        assert content["train"]["rows"] == 6 * (1600 if run == "mem" else 400)
        assert content["train"]["rows_per_second"] > 0
        post = content["eval"]["click@post"]
        assert set(post) >= {"auc", "gauc", "logloss", "ne", "calibration", "rows", "positives", "gauc_users"}
        assert post["rows"] == 200
        lines = [json.loads(line) for line in (world / run / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == content["train"]["steps"]
        assert any("valid" in line for line in lines)
        assert list((world / run / "tensorboard").iterdir())
        assert len(list((world / run / "checkpoints").glob("step_*"))) in (2, 3)  # the last two and the best
        assert "torchrec" in (world / run / "log.txt").read_text()


def test_the_models_learn(world):
    assert metrics(world / "mem")["eval"]["click@post"]["auc"] > 0.6


def test_the_transfer_manifest_accounts_for_every_weight(world):
    manifest = json.loads((world / "tem" / "transfer.json").read_text())
    assert all(name.startswith("teacher.") for name in manifest["loaded"])
    assert not any(name.startswith("teacher.") for name in manifest["fresh"])
    assert any("towers" in name for name in manifest["pruned"])
    assert any("t_tags" in name for name in manifest["pruned"])
    assert str(world / "mem" / "checkpoints") in manifest["from"]


def test_the_screen_is_ours(world, tmp_path):
    done = command("train", world / "mkt_pretrain.yaml", "--run-dir", tmp_path / "run")
    assert "WARNING" not in done.stdout + done.stderr
    assert "torchrec" not in done.stderr
    assert "click@post" in done.stdout


def test_an_export_scores_as_its_run(world, tmp_path):
    """Stage 2, whose artefact is used where neither run is."""
    done = command("export", world / "tem", "--out", tmp_path / "out")
    assert "version 1, mkt_finetune for 'post'" in done.stdout
    rows = world / "feed" / "post" / "test.parquet"
    artifact = ("score", rows, "--artifact", tmp_path / "out")
    command(*artifact, "--out", tmp_path / "ours.parquet", "--parts")
    command("score", world / "tem", rows, "--domain", "post", "--out", tmp_path / "theirs.parquet", "--parts")
    ours, theirs = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("ours", "theirs"))
    assert ours.schema == theirs.schema
    name = "score_click@post"
    np.testing.assert_allclose(ours[name].to_numpy(), theirs[name].to_numpy(), rtol=0, atol=1e-6)
    for more, message in {
        ("--domain", "items"): "--domain items: the artefact scores rows of 'post'",
        ("--checkpoint", "last"): "--checkpoint belongs to a run",
    }.items():
        refused = command(*artifact, "--out", tmp_path / "none.parquet", *more, check=False)
        assert refused.returncode == 2
        assert message in refused.stderr
    tables = json.loads((tmp_path / "out" / "versions" / "1" / "manifest.json").read_text())["tables"]
    assert {"t_user", "teacher/t_user"} <= set(tables)
    assert not {"t_tags", "teacher/t_tags"} & set(tables)


@pytest.mark.slow
def test_two_ranks_export_what_one_does(world, tmp_path):
    """Weights stay where they began, which does not depend on the number of ranks."""
    rest = {"tables": {"name": "sgd", "lr": 1e-30}, "dense": {"lr": 1e-30}}
    settings = {"domains": ["post"], "optimizer": rest, "trainer": {"threads": 1}}
    (tmp_path / "feed").symlink_to(world / "feed")
    config = write_config(tmp_path, "single", **settings)
    train = ["torchrec_xd.cli", "train", str(config), "--run-dir"]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([*ranks, *train, str(tmp_path / "two")], check=True, timeout=120, capture_output=True)
    command(*train[1:], tmp_path / "one")
    nets, tables = [], []
    for run in ("one", "two"):
        command("export", tmp_path / run, "--out", tmp_path / f"{run}_out")
        version = tmp_path / f"{run}_out" / "versions" / "1"
        tables.append((version / "tables.safetensors").read_bytes())
        nets.append({w.name: numpy_helper.to_array(w) for w in onnx.load(version / "net.onnx").graph.initializer})
    assert tables[0] == tables[1]
    assert nets[0].keys() == nets[1].keys()
    for name, weight in nets[0].items():  # a weight of 0 becomes 1e-30, of either sign
        np.testing.assert_allclose(nets[1][name], weight, rtol=0, atol=1e-20)


def test_evaluate_says_what_train_said(world, tmp_path):
    command("evaluate", world / "tem", "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["eval"] == metrics(world / "tem")["eval"]


def test_score_predicts_the_rows_in_their_order(world, tmp_path):
    rows = world / "feed" / "post" / "test.parquet"
    command("score", world / "tem", rows, "--domain", "post", "--out", tmp_path / "scores.parquet")
    scored, given = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(rows)
    assert scored.column_names == ["user", "prob_click@post"]
    assert scored["user"].to_pylist() == given["user"].to_pylist()
    from sklearn.metrics import roc_auc_score

    auc = roc_auc_score(given["click"].to_numpy(), scored["prob_click@post"].to_numpy())
    assert np.isclose(auc, metrics(world / "tem")["eval"]["click@post"]["auc"], atol=1e-6)
    bare = tmp_path / "bare.parquet"
    pq.write_table(given.drop_columns(["click"]), bare)
    command("score", world / "tem", bare, "--domain", "post", "--out", tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(scored)
    command("score", world / "mem", bare, "--domain", "post", "--out", tmp_path / "mem.parquet")
    assert pq.read_table(tmp_path / "mem.parquet").num_rows == 200


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(world, tmp_path):
    # Row by row identical to the undisturbed run: metrics lines (less speed), final metrics and predictions.
    config, whole, broken = world / "mkt_pretrain.yaml", world / "long", tmp_path / "broken"
    more = ["--set", "trainer.epochs=12"]
    command("train", config, "--run-dir", whole, *more)
    arguments = [sys.executable, "-m", "torchrec_xd.cli", "train", str(config), "--run-dir", str(broken), *more]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (broken / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "--resume" in said
    assert not (broken / "metrics.json").exists()
    command("train", config, "--run-dir", broken, "--resume", *more)

    def lines(run):
        parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        every = [{k: v for k, v in line.items() if k != "rows_per_second"} for line in parsed]
        return [line for line in every if line["step"] % 5 == 0 or "valid" in line]

    assert lines(broken)[-1] == lines(whole)[-1]
    assert metrics(broken)["eval"] == metrics(whole)["eval"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"change": {"name": "mkt_pretrian"}}, ["model", "mkt_pretrian", "mkt_pretrain"]),
        ({"trainer": {"epoch": 3}}, ["trainer.epoch", "did you mean 'epochs'", "log_every"]),
        ({"trainer": {"epochs": "many"}}, ["trainer.epochs", "many"]),
        ({"domains": ["posts"]}, ["posts", "items, video, post"]),
        ({"change": {"gamma": -1}}, ["gamma", "-1"]),
        ({"init_from": "runs/nowhere"}, ["init_from"]),
    ],
)
def test_a_bad_config_is_one_screen_and_exit_code_2(world, tmp_path, change, said, command_here):
    path = write_config(world, "mkt_pretrain", **change)
    done = command_here("train", path, "--run-dir", tmp_path / "run")
    write_config(world, "mkt_pretrain")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25
    for part in (str(path.name), *said):
        assert part in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "run").exists()


def test_bad_parquet_is_told_before_anything_is_written(world, tmp_path):
    for column, damage in {"hour": None, "style": 99}.items():
        feed = write_feed(tmp_path / f"feed_{column}")
        table = pq.read_table(feed / "post" / "train.parquet")
        if damage is None:
            table = table.drop_columns([column])
        else:
            values = table[column].to_numpy().copy()
            values[7] = damage
            table = table.set_column(table.column_names.index(column), column, [values])
        pq.write_table(table, feed / "post" / "train.parquet")
        done = command(
            "train",
            world / "mkt_pretrain.yaml",
            "--run-dir",
            tmp_path / f"run_{column}",
            "--set",
            f"schema.root={feed}",
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert column in done.stderr
        assert "train.parquet" in done.stderr.replace("\n", "")
        assert not (tmp_path / f"run_{column}").exists()
        assert damage is None or "99 lies outside [0, 5)" in done.stderr.replace("\n", " ")


def test_debug_shows_the_traceback(world, tmp_path):
    done = command("--debug", "train", tmp_path / "none.yaml", "--run-dir", tmp_path / "run", check=False)
    assert "Traceback" in done.stderr
    assert "none.yaml" in done.stderr


def test_a_folder_is_never_overwritten(world, command_here):
    before = (world / "mem" / "metrics.json").read_bytes()
    done = command_here("train", world / "mkt_pretrain.yaml", "--run-dir", world / "mem")
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert (world / "mem" / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_two_processes_launched_by_torchx(world, tmp_path):
    binaries = Path(sys.executable).parent
    component = f"{ROOT / 'launch' / 'components.py'}:train"
    arguments = ["--config", world / "mkt_pretrain.yaml", "--run_dir", tmp_path / "run", "-j", "1x2"]
    done = subprocess.run(
        [binaries / "torchx", "run", "--scheduler", "local_cwd", "--wait", component, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=180,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")["eval"]["click@post"]["rows"] == 200
    assert (tmp_path / "run" / "log.rank1.txt").exists()
    # Another number of processes reads the checkpoint all the same.
    command("evaluate", tmp_path / "run", "--json", tmp_path / "one.json")
    one, two = json.loads((tmp_path / "one.json").read_text())["eval"], metrics(tmp_path / "run")["eval"]
    assert np.isclose(one["click@post"]["auc"], two["click@post"]["auc"], atol=1e-6)


def test_the_doctor_finds_this_environment_well():
    done = command("doctor")
    assert "fbgemm" in done.stdout.lower()


def test_a_plan_is_made_loaded_and_refused_for_another_model(world, tmp_path):
    plan = tmp_path / "plan.json"
    arguments = ["--cluster", "cpu", "--world-size", "1", "--ranks-per-node", "1", "--out", plan]
    command("plan", "make", world / "mkt_pretrain.yaml", *arguments)
    chosen = ["--set", f"sharding.plan={plan}", "--set", "trainer.epochs=1"]
    command("train", world / "mkt_pretrain.yaml", "--run-dir", tmp_path / "run", *chosen)
    assert metrics(tmp_path / "run")["train"]["steps"] > 0
    other = [*chosen, "--set", "schema.dim=8"]
    done = command("train", world / "mkt_pretrain.yaml", "--run-dir", tmp_path / "other", *other, check=False)
    assert done.returncode == 2
    assert "plan.json" in done.stderr.replace("\n", "")


def test_an_unknown_data_set_lists_the_known_ones(tmp_path):
    done = command("prepare", "cj_fed", "--out", tmp_path / "data", check=False)
    assert done.returncode == 2
    assert "cj_feed" in done.stderr
    assert not (tmp_path / "data").exists()


def test_the_planner_is_found_from_any_folder(tmp_path):
    """The installed command knows where the package lies, and nothing else of the project."""
    (tmp_path / "torchrec_xd").symlink_to(ROOT / "torchrec_xd")
    done = command(
        "plan", "make", "--help", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "120"}
    )
    assert "--cluster" in done.stdout
