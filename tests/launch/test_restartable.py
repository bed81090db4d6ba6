"""A train that a launcher may start any number of times."""

import json

import pytest

from torchrec_xd.cli.evaluate import evaluate
from torchrec_xd.config import load_config
from torchrec_xd.errors import UserError
from torchrec_xd.training import inference
from torchrec_xd.training import train_run as run


@pytest.fixture
def config(feed):
    return load_config(feed / "pretrain.yaml")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_begins_then_leaves_the_finished_run_as_it_is(config, tmp_path):
    first = run.train(config, tmp_path / "run", restartable=True)
    before = contents(tmp_path / "run")
    again = run.train(config, tmp_path / "run", restartable=True)
    assert again == json.loads(json.dumps(first))
    assert contents(tmp_path / "run") == before
    assert before


def test_it_goes_on_where_the_run_was_broken_off(config, tmp_path):
    whole = run.train(config, tmp_path / "run", restartable=True)
    # As if it had died in the second epoch: its last checkpoint and its results are not there.
    (tmp_path / "run" / "metrics.json").unlink()
    first, last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    last.rename(tmp_path / "gone")
    resumed = run.train(config, tmp_path / "run", restartable=True)
    assert 0 < resumed["train"]["steps"] == whole["train"]["steps"] - int(first.name.partition("_")[2])
    assert resumed["eval"] == whole["eval"]


def test_another_run_in_the_folder_is_refused(config, feed, tmp_path):
    run.train(config, tmp_path / "run")
    other = load_config(feed / "pretrain.yaml", ["seed=7"])
    with pytest.raises(UserError, match="not the one"):
        run.train(other, tmp_path / "run", restartable=True)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match="not empty"):
        run.train(config, tmp_path / "run", restartable=True)


def test_of_several_processes_the_first_alone_tells_a_report(monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "evaluate", lambda *_: {"eval": {}, "slices": {}})
    for rank, written in {"1": False, "0": True}.items():
        monkeypatch.setenv("RANK", rank)
        evaluate(tmp_path, out=tmp_path / "report.json")
        assert (tmp_path / "report.json").exists() == written
