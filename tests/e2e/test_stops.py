"""A run that is stopped at an epoch's end loses nothing; one that diverges says where, and keeps what it had."""

import json
import os
import signal

import pytest

from tests.feeds import schema_at, write_feed
from torchrec_xd import trainer
from torchrec_xd.config import RunConfig
from torchrec_xd.run import train
from torchrec_xd.settings import InterruptedRunError, UserError, validate


def config_of(folder, **changes):
    content = {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 64},
        "trainer": {"epochs": 3, "log_every": 1000, "threads": 1},
        **changes,
    }
    return validate(RunConfig, content, "test")


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "rows_per_second"} for line in found]


def test_a_stop_heard_at_the_end_of_an_epoch_keeps_its_validation(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    train(config, tmp_path / "whole")
    step = trainer._step

    def stop_in_the_last_step(training, batch):
        if (batch.position.epoch, batch.position.step) == (0, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(training, batch)

    monkeypatch.setattr(trainer, "_step", stop_in_the_last_step)
    with pytest.raises(InterruptedRunError, match="stopped after step 7 of 21"):
        train(config, tmp_path / "stopped")
    monkeypatch.undo()
    train(config, tmp_path / "stopped", resume=True)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert sum("valid" in line for line in lines(tmp_path / "whole")) == 3


def test_a_loss_that_is_not_finite_names_the_rows_and_is_never_saved(tmp_path):
    config = config_of(
        tmp_path,
        optimizer={"dense": {"lr": 1e30}},
        checkpoint={"every_steps": 1, "keep": 9},
        loader={"batch_size": 64, "shuffle_rows": 100},
    )
    with pytest.raises(UserError, match=r"the loss became \w+ at or before step \d+ \(epoch 0, batch \d+\)") as error:
        train(config, tmp_path / "run")
    assert "post/train.parquet: rows " in str(error.value)
    step = int(str(error.value).split("step ")[1].split(" ")[0])
    assert step > 1
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == [f"step_{n:09d}" for n in range(1, step)]
