"""The wheel works alone: built, installed into an environment of its own, and used in an empty folder.

The environment sees this one's dependencies, so that nothing is downloaded, but neither the clone nor its editable
installation.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORLD = ("--set", "target_rows=1000", "--set", "source_ratio=2", "--set", "valid_rows=100", "--set", "test_rows=200")
FEWER_ROWS = {"range(8)": "range(4)", "12_000": "2_000", "3_000": "1_000"}
"""Of the days of a tutorial."""
SCRIPTS = {"torchx": "torchx.cli.main", "torchrun": "torch.distributed.run"}
"""Commands of dependencies, as pip would have installed them here."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--no-index", "--wheel-dir", out, ROOT], check=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run a command of the environment in a folder that starts empty."""
    folder = tmp_path_factory.mktemp("installed")
    environment, place = folder / "env", folder / "work"
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site / "dependencies.pth").write_text(f"{distribution('torch').locate_file('')}\n")
    for name, module in SCRIPTS.items():
        script = environment / "bin" / name
        script.write_text(
            f"#!{python}\nimport runpy\nrunpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        )
        script.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env = {**kept, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.place = place
    return run


def test_the_package_is_the_installed_one(installed):
    where = installed("python", "-c", "import torchrec_xd; print(torchrec_xd.__file__, torchrec_xd.__version__)")
    assert str(ROOT) not in where
    assert where.split()[1] == distribution("torchrec-xd").version


def test_types_and_configs_come_along(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "torchrec_xd/py.typed" in names
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"torchrec_xd/{name}" for name in configs} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "launch/", "examples/", "docs/"))]


def test_a_user_without_a_clone(installed):
    """Copies a config, makes data, trains both stages of MKT, plans, and compares."""
    assert "world/mkt_pretrain" in installed("torchrec-xd", "config", "list")
    assert "mkt_pretrain" in installed("torchrec-xd", "config", "show", "world/mkt_pretrain")
    for name in ("world/mkt_pretrain", "world/mkt_finetune", "world/single", "world/shared_bottom"):
        installed("torchrec-xd", "config", "copy", name)
    installed("torchrec-xd", "prepare", "world", "--preset", "helps", "--out", "data/worlds/helps", *WORLD)
    train = ("torchrec-xd", "train")
    installed(*train, "configs/world/mkt_pretrain.yaml", "--run-dir", "runs/world_mkt_pretrain")
    installed(*train, "configs/world/mkt_finetune.yaml", "--run-dir", "runs/finetune")
    assert "click@target" in installed("torchrec-xd", "evaluate", "runs/finetune")
    plan = ("torchrec-xd", "plan", "make", "configs/world/mkt_pretrain.yaml", "--cluster", "8xH100")
    assert "no plan can beat" in installed(*plan, "--out", "plan.json")
    assert json.loads((installed.place / "plan.json").read_text())["cluster"]["world_size"] == 8
    study = {
        "data": {"helps": {"task": "click@target"}},
        "reference": "single",
        "seeds": 1,
        "samples": 200,
        "metrics": ["auc"],  # of so few rows, users are too few for GAUC
        "models": {name: {"config": f"configs/world/{name}.yaml"} for name in ("single", "shared_bottom")},
    }
    (installed.place / "study.yaml").write_text(yaml.safe_dump(study))
    installed("torchrec-xd", "compare", "study.yaml", "--out", "study")
    assert "shared_bottom" in (installed.place / "study" / "results.md").read_text()


def test_from_raw_logs_to_scores_without_an_editor(installed):
    """The tutorial as it is written: its script, then its six commands; the last scores rows that have no label."""
    page = (ROOT / "docs" / "tutorials" / "from_logs.md").read_text(encoding="utf-8")
    installed("python", "-c", re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    before = {path.name for path in installed.place.iterdir()}
    commands = re.findall(r"^    (torchrec-xd .*)", page.replace("\\\n", " "), re.MULTILINE)
    assert [shlex.split(line)[1] for line in commands] == ["init", "prepare", "train", "train", "evaluate", "score"]
    shown = [installed(*shlex.split(line)) for line in commands]
    assert "liked@videos" in shown[4]
    new = (installed.place / "new.csv").read_text().splitlines()[1:]
    scores = pq.read_table(installed.place / "scores.parquet")
    assert scores["user"].to_pylist() == [line.split(",")[0] for line in new]
    found = scores["prob_liked@videos"].to_pylist()
    assert all(0 < value < 1 for value in found)
    assert len(set(found)) > 10
    made = {path.name for path in installed.place.iterdir()} - before
    assert made <= {"shop.yaml", "data", "runs", "scores.parquet"}


def test_day_after_day_as_it_is_written(installed):
    """The tutorial's days of raw keys: trained, continued, exported, replayed; and its simulation."""
    page = (ROOT / "docs" / "tutorials" / "day_after_day.md").read_text(encoding="utf-8")
    script, schema, replay = (found[1] for found in re.finditer(r"^```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert all(word in script for word in FEWER_ROWS)
    for word, fewer in FEWER_ROWS.items():
        script = script.replace(word, fewer)
    installed("python", "-c", script)
    (installed.place / "schema.yaml").write_text(schema)
    (installed.place / "replay.yaml").write_text(replay)
    for stage in ("pretrain", "finetune"):
        assert f"base/mkt_{stage}`" in page
        installed("torchrec-xd", "config", "copy", f"base/mkt_{stage}")
    commands = map(shlex.split, re.findall(r"^    (torchrec-xd .*)", page.replace("\\\n", " "), re.MULTILINE))
    shown = {words[1]: installed(*words) for words in commands if words[1] != "serve"}
    assert list(shown) == ["train", "export", "replay", "config", "simulate"]
    first, second = (json.loads((installed.place / f"models/versions/{n}/manifest.json").read_text()) for n in (1, 2))
    assert (first["since"], second["since"]) == (None, 1)
    assert all(second["tables"][name]["rows"] >= table["rows"] for name, table in first["tables"].items())
    results = json.loads((installed.place / "runs/replay/results.json").read_text())
    assert {line["policy"] for line in results["scores"]} == {"never", "scratch", "incremental"}
    assert "random" in (installed.place / "runs/simulate_small/results.md").read_text()


def test_the_benchmark(installed):
    assert "GEMM" in installed("torchrec-xd", "benchmark", "counts", "--model", "mmoe").upper()


def test_torchx_finds_the_components(installed):
    listed = installed("torchx", "builtins")
    for name in ("xd.train", "xd.mkt", "xd.benchmark", "dist.ddp"):
        assert f"{name}\n" in listed or f"{name} " in listed, listed
    job = installed("torchx", "run", "--dryrun", "-s", "local_cwd", "xd.benchmark", "--command", "counts")
    assert "torchrec_xd.benchmark" in job
