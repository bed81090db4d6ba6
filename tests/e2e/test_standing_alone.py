"""A run folder needs nothing but itself and its data: not the run that it started from, nor the folder it began in."""

import json
import os
import shutil

import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.stops import train_until
from torchrec_xd.config import load_config, load_run
from torchrec_xd.errors import UserError
from torchrec_xd.training.inference import evaluate, predict
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs/pre, runs/ft (which starts from it by a relative path) and what ft measured."""
    folder = tmp_path_factory.mktemp("home")
    schema = schema_at(write_feed(folder / "feed"))
    content = {"schema": schema, "loader": {"batch_size": 64}, "trainer": {"epochs": 2, "threads": 1}}
    stages = {
        "pre": {**content, "model": PRETRAIN},
        "ft": {**content, "model": FINETUNE, "domains": ["post"], "init_from": "runs/pre"},
    }
    before = os.getcwd()
    os.chdir(folder)
    try:
        for name, stage in stages.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(stage, sort_keys=False))
            train(load_config(f"{name}.yaml"), f"runs/{name}")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def moved(home, tmp_path, monkeypatch):
    """The finished run alone, in another place."""
    shutil.copytree(home / "runs" / "ft", tmp_path / "ft")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ft"


@pytest.mark.parametrize("source", ["gone", "trained again"])
def test_it_is_evaluated_and_scored_without_its_source(home, moved, source):
    if source == "trained again":
        wider = load_config(home / "pre.yaml", ["model.aligned_dim=5", "trainer.epochs=1"])
        train(wider, moved.parent / "runs" / "pre")
    assert evaluate(moved, "test")["eval"] == json.loads((moved / "metrics.json").read_text())["eval"]
    assert predict(moved, domain="post").num_rows == 200
    assert load_config(moved / "source.yaml").model.name == "mkt_pretrain"


def test_it_is_resumed_without_its_source(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(home / "ft.yaml", [f"init_from={home / 'runs' / 'pre'}"])
    train_until(3, monkeypatch, config, "ft")
    gone = load_config(home / "ft.yaml")  # spelled as it was there, where it leads nowhere from here
    with pytest.raises(UserError, match="is no run folder"):
        train(gone, "ft", resume=True)
    shutil.copytree(home / "runs" / "pre", tmp_path / "copy")
    same = load_config(home / "ft.yaml", ["init_from=copy"])  # the same run under another name
    resumed = train(same, "ft", resume=True)
    assert resumed["eval"] == evaluate(home / "runs" / "ft", "test")["eval"]
    assert resumed["train"]["steps"] == 11


def test_its_own_config_goes_on_when_the_source_is_gone(home, tmp_path, monkeypatch):
    shutil.copytree(home / "runs" / "pre", tmp_path / "pre")
    config = load_config(home / "ft.yaml", [f"init_from={tmp_path / 'pre'}"])
    train_until(3, monkeypatch, config, tmp_path / "ft")
    shutil.rmtree(tmp_path / "pre")
    resumed = train(load_run(tmp_path / "ft"), tmp_path / "ft", resume=True)
    assert resumed["eval"] == evaluate(home / "runs" / "ft", "test")["eval"]


def test_another_source_is_refused(home, tmp_path, monkeypatch):
    wider = load_config(home / "pre.yaml", ["model.aligned_dim=5", "trainer.epochs=1"])
    train(wider, tmp_path / "other")
    with pytest.raises(UserError, match=r"init_from is .*other, another run than runs/pre, from which .*ft began"):
        train(load_config(home / "ft.yaml", [f"init_from={tmp_path / 'other'}"]), home / "runs" / "ft", resume=True)


def test_a_source_that_was_trained_again_is_not_taken_for_the_first(home, tmp_path, monkeypatch):
    """The run died before its first checkpoint, so that it has to read the source once more."""
    shutil.copytree(home / "runs" / "pre", tmp_path / "pre")
    config = load_config(home / "ft.yaml", [f"init_from={tmp_path / 'pre'}"])
    train_until(1, monkeypatch, config, tmp_path / "ft", how="die")
    shutil.rmtree(tmp_path / "pre")
    train(load_config(home / "pre.yaml", ["seed=5"]), tmp_path / "pre")
    with pytest.raises(UserError, match=r"init_from: .*pre has been trained again since .*ft began; begin another run"):
        train(config, tmp_path / "ft", resume=True)
    shutil.rmtree(tmp_path / "pre")
    shutil.copytree(home / "runs" / "pre", tmp_path / "pre")
    assert train(config, tmp_path / "ft", resume=True)["eval"] == evaluate(home / "runs" / "ft", "test")["eval"]
