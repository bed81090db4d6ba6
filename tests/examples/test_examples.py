"""The examples run as they are, and a model from another package is a model like any other."""

import json
import os
import runpy
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from torchrec_xd import models
from torchrec_xd.config import load_config, load_run
from torchrec_xd.errors import UserError
from torchrec_xd.training.train_run import train

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("own_data", "mkt_two_stages", "plan_a_cluster")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "wide_and_deep", "client"}


def test_own_data_learns_the_taste_that_both_domains_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "own_data.py"))
    assert names["metrics"]["eval"]["click@coupon"]["auc"] > 0.6
    assert names["predictions"].column_names == ["user_id", "prob_click@coupon"]
    assert names["predictions"].num_rows == 1_000


@pytest.fixture
def config(tmp_path):
    """A config that names the model of the example, on a small feed."""
    content = {
        "schema": schema_at(write_feed(tmp_path / "feed")),
        "model": {"name": "wide_and_deep:MODEL", "widths": [8]},
        "loader": {"batch_size": 128},
        "trainer": {"threads": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("wide_and_deep", None)
    models.find_model.cache_clear()


def test_a_model_of_another_package_trains_resumes_and_scores(config, tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}"}
    run = tmp_path / "run"
    command("train", config, "--run-dir", run, env=env)
    command("evaluate", run, "--json", tmp_path / "report.json", env=env)
    written = json.loads((run / "metrics.json").read_text())["eval"]
    assert json.loads((tmp_path / "report.json").read_text())["eval"] == written
    assert "wide_and_deep:MODEL" in (run / "config.yaml").read_text()


def test_its_settings_are_as_strict_as_ours(config, importable):
    assert load_config(config).model.widths == (8,)
    message = r"unknown key 'model.width'; did you mean 'widths'\?; valid keys: dropout, name, widths"
    with pytest.raises(UserError, match=message):
        load_config(config, ["model.width=[3]"])
    with pytest.raises(UserError, match=r"'model\.widths\.0': Input should be greater than 0"):
        load_config(config, ["model.widths=[0]"])


def test_a_package_may_register_its_model_by_name(config, importable, monkeypatch, tmp_path):
    point = EntryPoint("wide_and_deep", "wide_and_deep:MODEL", models.ENTRY_POINTS)
    monkeypatch.setattr(models, "entry_points", lambda group: [point] if group == models.ENTRY_POINTS else [])
    settings = load_config(config, ["model.name=wide_and_deep"])
    train(settings, tmp_path / "run")
    assert load_run(tmp_path / "run").model.name == "wide_and_deep"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide", r"unknown model 'wide'; models are: mkt_pretrain, .*or name your own: package.module:ATTRIBUTE"),
        ("no_such_package.models:MODEL", "no_such_package.models:MODEL cannot be imported: No module named"),
        ("wide_and_deep:NOTHING", "cannot be imported: module 'wide_and_deep' has no attribute 'NOTHING'"),
        ("wide_and_deep:WideAndDeep", "is a type, and has to be a ModelSpec"),
    ],
)
def test_a_model_that_is_none_is_refused(config, importable, name, message):
    with pytest.raises(UserError, match=message):
        load_config(config, [f"model.name={name}"])


def test_an_example_that_fails_fails_the_command(tmp_path):
    """Guards the tests above: a script's error is seen."""
    (tmp_path / "bad.py").write_text("import torchrec_xd\ntorchrec_xd.no_such_name\n")
    done = subprocess.run([sys.executable, tmp_path / "bad.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no attribute 'no_such_name'; its public names are" in done.stderr
