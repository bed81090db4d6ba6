"""Early stopping: trainer.patience ends training, the best checkpoint is what the run leaves; resuming is exact."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.patient_runs import config_of, lines
from tests.support.small_models import weights
from tests.support.stops import train_until
from torchrec_xd.checkpoint import Scores
from torchrec_xd.errors import UserError
from torchrec_xd.training.split_evaluation import SplitEvaluation
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return schema_at(write_feed(tmp_path_factory.mktemp("feed"), rows=128))


@pytest.fixture
def scores(monkeypatch):
    """What validation says after each epoch, by the checkpoint's number: resumed runs ask for the same."""
    said = [0.5, 0.7, 0.6, 0.7, 0.9, 0.9]
    asked = []

    def monitored(self, model, config):
        asked.append(said[len(asked)])
        return asked[-1]

    monkeypatch.setattr(SplitEvaluation, "monitored", monitored)
    return asked


SAID = "no better score than 0.7000 in 2 epochs (trainer.patience): training ends after step 8 of 18"


def test_waiting_by_hand():
    seen, scores = [], Scores()
    for score in (None, 0.5, 0.5, 0.7, 0.6, None):
        scores = scores.after(score)
        seen.append((scores.best, scores.waited))
    assert seen == [(None, 1), (0.5, 0), (0.5, 1), (0.7, 0), (0.7, 1), (0.7, 2)]
    assert [scores.exhaust(patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]


def test_it_ends_without_a_better_score_and_leaves_the_best(schema, tmp_path, scores):
    """Scores .5, .7, .6, .7: equal is not better. 128 rows are two steps of an epoch."""
    metrics = train(config_of(schema), tmp_path / "run")
    assert scores == [0.5, 0.7, 0.6, 0.7]
    assert [line["valid"] for line in lines(tmp_path / "run") if "valid" in line] == scores
    assert metrics["train"]["steps"] == 8
    assert (tmp_path / "run" / "log.txt").read_text().count(SAID) == 1
    assert metrics["checkpoint"] == "step_000000008"  # as good as the one after step 4, and trained longer
    again = train(config_of(schema), tmp_path / "run", restartable=True)
    assert again == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(scores) == 4


def test_the_best_of_different_scores_is_what_is_measured(schema, tmp_path, monkeypatch):
    said = iter([0.8, 0.7, 0.6])
    monkeypatch.setattr(SplitEvaluation, "monitored", lambda self, model, config: next(said))
    assert train(config_of(schema), tmp_path / "run")["checkpoint"] == "step_000000002"


def test_without_patience_training_goes_on(schema, tmp_path, scores):
    train(config_of(schema, trainer={"epochs": 5, "threads": 1}), tmp_path / "run")
    assert len(scores) == 5


@pytest.mark.parametrize("step", [5, 6, 7, 8])
def test_resumed_it_ends_as_if_it_had_never_stopped(schema, tmp_path, monkeypatch, scores, step):
    """Inside an epoch, and in the last step of one, that of the last one among them."""
    config = config_of(schema, checkpoint={"keep": 1})
    train(config, tmp_path / "whole")
    scores.clear()
    train_until(step, monkeypatch, config, tmp_path / "stopped")
    metrics = train(config, tmp_path / "stopped", resume=True)
    assert scores == [0.5, 0.7, 0.6, 0.7]
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert metrics["train"]["steps"] == 8 - step
    assert SAID in (tmp_path / "stopped" / "log.txt").read_text()
    here, there = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(here[key].equal(there[key]) for key in there)


def test_both_stages_of_mkt(schema, tmp_path, scores):
    train(config_of(schema, model=PRETRAIN, domains=None), tmp_path / "first")
    scores.clear()
    train(config_of(schema, model=FINETUNE, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert len(scores) == 4


@pytest.mark.parametrize(
    ("content", "tasks"),
    [
        ({"train_on_valid": True}, "click@post"),
        ({"domains": ["video"]}, "click@video"),
        ({"domains": ["items", "video"], "monitor_tasks": ["click@video"]}, "click@video"),
    ],
)
def test_nothing_to_measure(schema, content, tasks):
    with pytest.raises(UserError) as error:
        config_of(schema, **content)
    assert (
        "trainer.patience waits for a better score on the valid split, and there is none of the monitored tasks, "
        f"{tasks} (train_on_valid trains on it): name files for one, or leave trainer.patience out and choose "
        "trainer.epochs"
    ) in str(error.value)


def test_no_validation_rows_of_the_target(schema, tmp_path):
    """Those of a source alone give no score: waiting for one would cut training off."""
    own = {name: dict(domain) for name, domain in schema["domains"].items()}
    (tmp_path / "empty").mkdir()
    rows = pq.read_table(Path(schema["root"]) / own["post"]["valid"])
    pq.write_table(rows.slice(0, 0), tmp_path / "empty" / "valid.parquet")
    own["post"]["valid"] = str(tmp_path / "empty" / "valid.parquet")
    schema, every = {**schema, "domains": own}, {"domains": None, "model": {"name": "mmoe"}}
    with pytest.raises(
        UserError, match=r"which holds no rows of the monitored tasks, click@post: name files with such"
    ):
        train(config_of(schema, **every), tmp_path / "run")
    del own["post"]["valid"]
    with pytest.raises(UserError, match="there is none of the monitored tasks, click@post"):
        config_of(schema, **every)
    metrics = train(config_of(schema, **every, trainer={"epochs": 1, "threads": 1}), tmp_path / "run")
    [said] = [line for line in metrics["warnings"] if line.startswith("the valid split")]
    assert said.startswith(
        "the valid split holds no rows of the monitored tasks, click@post: no checkpoint is the best"
    )
