"""A run that is stopped at an epoch's end loses nothing; one that diverges says where, and keeps what it had."""

import json
import os
import resource
import signal
import threading

import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import InterruptedRunError, UserError
from torchrec_xd.settings import validate
from torchrec_xd.training import trainer
from torchrec_xd.training.train_run import train


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
    step = trainer.forward

    def stop_in_the_last_step(training, batch):
        if (batch.position.epoch, batch.position.step) == (0, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(training, batch)

    monkeypatch.setattr(trainer, "forward", stop_in_the_last_step)
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
    # whoever keeps the error keeps the frames of the loop, and these must not keep the reading threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert "post/train.parquet: rows " in str(error.value)
    step = int(str(error.value).split("step ")[1].split(" ")[0])
    assert step > 1
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == [f"step_{n:09d}" for n in range(1, step)]


def test_a_full_disk_ends_the_run_and_what_it_saved_before_goes_on(tmp_path, monkeypatch):
    config = config_of(tmp_path, checkpoint={"every_steps": 2})
    train(config, tmp_path / "whole")
    step, limit = trainer.forward, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(training, batch):
        if (batch.position.epoch, batch.position.step) == (0, 3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        return step(training, batch)

    monkeypatch.setattr(trainer, "forward", fill_the_disk)
    try:
        with pytest.raises(
            UserError, match=r"step 4 could not be written to .*: .*File too large.*\n.* --resume"
        ) as told:
            train(config, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(str(told.value).splitlines()) == 2
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "full" / "checkpoints").glob("step_*")] == ["step_000000002"]
    train(config, tmp_path / "full", resume=True)
    assert lines(tmp_path / "full") == lines(tmp_path / "whole")
