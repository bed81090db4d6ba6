"""An epoch is saved before it is validated: what ends the run in between costs no training, and changes no number."""

import json
from contextlib import contextmanager

import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.patient_runs import config_of, lines
from tests.support.small_models import weights
from tests.support.stops import KilledError, train_until
from torchrec_xd.checkpoint import Checkpoints
from torchrec_xd.log import RunLog
from torchrec_xd.training.split_evaluation import SplitEvaluation
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return schema_at(write_feed(tmp_path_factory.mktemp("feed"), rows=128))


def kept(run):
    """The checkpoints that a run keeps, and what each says of itself, but for bytes of files (random names)."""
    found = {path.name: json.loads((path / "position.json").read_text()) for path in (run / "checkpoints").iterdir()}
    return {name: {k: found[name][k] for k in found[name] if k not in ("files", "checksum")} for name in sorted(found)}


def assert_same(here, there):
    assert lines(here) == lines(there)
    assert kept(here) == kept(there)
    ours, theirs = weights(here), weights(there)
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (here, there)]
    assert metrics[0]["eval"] == metrics[1]["eval"]
    assert metrics[0]["checkpoint"] == metrics[1]["checkpoint"]


@contextmanager
def killed_at(monkeypatch, place, name, call):
    """The `call`-th call of a method, counted from 1, is the process's last."""
    own, calls = getattr(place, name), []

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KilledError
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, counted)
        with pytest.raises(KilledError):
            yield


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_in_validation_it_goes_on_as_if_nothing_had_been(schema, tmp_path, monkeypatch, epoch, keep):
    """Real validation scores; patience of 2 may end the run, at the same place."""
    config = config_of(schema, checkpoint={"keep": keep}, trainer={"epochs": 4, "patience": 2, "threads": 1})
    train(config, tmp_path / "whole")
    epochs = len([line for line in lines(tmp_path / "whole") if "valid" in line])
    assert epochs == 3, "patience ended the run"
    with killed_at(monkeypatch, SplitEvaluation, "monitored", epoch):
        train(config, tmp_path / "killed")
    last = list(kept(tmp_path / "killed").values())[-1]
    assert (last["step"], last["validated"]) == (2 * epoch, False)
    metrics = train(config, tmp_path / "killed", resume=True)
    assert metrics["train"]["steps"] == 2 * (epochs - epoch)
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(("place", "name"), [(RunLog, "metrics"), (Checkpoints, "score")])
def test_killed_between_the_score_and_its_notes(schema, tmp_path, monkeypatch, place, name):
    """The line of metrics.jsonl is written before the checkpoint knows its score: it comes once."""
    config = config_of(schema, trainer={"epochs": 3, "threads": 1})
    train(config, tmp_path / "whole")
    call = 4 if place is RunLog else 2  # of the lines: one of losses and one of the score for every epoch
    with killed_at(monkeypatch, place, name, call):
        train(config, tmp_path / "killed")
    assert [line["validated"] for line in kept(tmp_path / "killed").values()] == [True, False]
    train(config, tmp_path / "killed", resume=True)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_asked_to_stop_in_the_last_step_of_an_epoch_it_saves_and_leaves_validation_for_later(
    schema, tmp_path, monkeypatch
):
    """Who asks may give seconds only."""
    config = config_of(schema, trainer={"epochs": 3, "threads": 1})
    train(config, tmp_path / "whole")
    asked = []
    monkeypatch.setattr(SplitEvaluation, "monitored", lambda *_: asked.append(1))
    train_until(2, monkeypatch, config, tmp_path / "stopped")
    assert not asked
    monkeypatch.undo()
    train(config, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_patience_counts_the_epoch_whose_validation_was_cut_off(schema, tmp_path, monkeypatch):
    """Scores .7, .6, .6: the third decides. Killed in it, the resumed run asks once more, and ends without a step."""
    said = [0.7, 0.6, 0.6]

    def monitored(self, model, config):
        return said.pop(0)

    monkeypatch.setattr(SplitEvaluation, "monitored", monitored)
    with killed_at(monkeypatch, SplitEvaluation, "monitored", 3):
        train(config_of(schema), tmp_path / "run")
    assert said == [0.6]
    metrics = train(config_of(schema), tmp_path / "run", resume=True)
    assert (metrics["train"]["steps"], metrics["checkpoint"]) == (0, "step_000000002")
    said = "in 2 epochs (trainer.patience): training ends after step 6 of 18"
    assert said in (tmp_path / "run" / "log.txt").read_text()


def test_a_former_best_goes_when_the_score_of_the_next_is_known(schema, tmp_path, monkeypatch):
    said = iter([0.5, 0.6, 0.7])
    monkeypatch.setattr(SplitEvaluation, "monitored", lambda self, model, config: next(said))
    config = config_of(schema, checkpoint={"keep": 1}, trainer={"epochs": 3, "threads": 1})
    train(config, tmp_path / "run")
    assert {name: saved["score"] for name, saved in kept(tmp_path / "run").items()} == {"step_000000006": 0.7}
