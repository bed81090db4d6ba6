"""A run goes on with another number of processes, or with more epochs: what was trained last is kept and measured."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from tests.support.stops import train_until
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, Saved, read_saved, write_saved
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training import train_run, trainer
from torchrec_xd.training.inference import evaluate
from torchrec_xd.training.train_run import train


def content_of(folder, **changes):
    return {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "train_on_valid": True,
        "loader": {"batch_size": 20},
        "trainer": {"epochs": 2, "log_every": 5, "threads": 1},
        "checkpoint": {"every_steps": 10, "keep": 1},
        **changes,
    }


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def torchrun(processes, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m",
         "torchrec_xd.cli", *map(str, arguments)],
        capture_output=True, check=False, text=True, timeout=300,
    )  # fmt: skip
    return done


def test_a_run_that_grows_keeps_and_measures_what_it_trained_last(tmp_path, monkeypatch):
    """600 rows are 30 steps of 20 rows; two processes need 15, and their step 15 + 10 comes after the old step 50."""
    content = content_of(tmp_path)
    config, run = validate(RunConfig, content, "test"), tmp_path / "run"
    train_until(51, monkeypatch, config, run, how="die")
    assert saved(run) == ["step_000000050"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = torchrun(2, "train", tmp_path / "run.yaml", "--run-dir", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert "at the same share of the epoch" in done.stderr
    assert saved(run) == ["step_000000055"]  # 10 of the second epoch's 15 steps count as done, so 5 are left
    assert json.loads((run / "metrics.json").read_text())["checkpoint"] == "step_000000055"
    steps = [line["step"] for line in lines(run)]
    assert steps == [*range(5, 60, 5)]
    position = json.loads((run / "checkpoints" / "step_000000055" / "position.json").read_text())
    assert position["position"] == {"epoch": 1, "step": 15}
    assert (position["epoch_steps"], position["world_size"]) == (15, 2)


def test_a_finished_run_is_given_more_epochs(tmp_path):
    def config(epochs, **more):
        trainer = {"epochs": epochs, "log_every": 5, "threads": 1, **more}
        return validate(RunConfig, content_of(tmp_path, trainer=trainer), "test")

    train(config(3), tmp_path / "whole")
    train(config(2), tmp_path / "grown")
    assert saved(tmp_path / "grown") == ["step_000000060"]
    content = train(config(3, timeout_s=90), tmp_path / "grown", restartable=True)
    assert content["checkpoint"] == "step_000000090"
    assert content["eval"] == json.loads((tmp_path / "whole" / "metrics.json").read_text())["eval"]
    losses = [[(line["step"], line.get("loss")) for line in lines(tmp_path / run)] for run in ("whole", "grown")]
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match=r"trainer.epochs is 2, and .*grown began with 3: it may grow only"):
        train(config(2), tmp_path / "grown", resume=True)


def test_a_run_that_was_stopped_between_two_lines_has_the_lines_of_one_left_alone(tmp_path, monkeypatch):
    """Stopped after step 8, where no line is due: step 8 is saved, and not a line of metrics.jsonl."""
    config = validate(RunConfig, content_of(tmp_path), "test")
    train(config, tmp_path / "whole")
    assert "stopped after step 8 of 60" in train_until(8, monkeypatch, config, tmp_path / "stopped")
    assert saved(tmp_path / "stopped") == ["step_000000008"]
    train(config, tmp_path / "stopped", resume=True)
    found = [
        [{k: v for k, v in line.items() if k != "rows_per_second"} for line in lines(tmp_path / name)]
        for name in ("whole", "stopped")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 12


def test_what_is_not_ours_in_the_folder_of_checkpoints_stays(tmp_path, monkeypatch):
    config, run = validate(RunConfig, content_of(tmp_path), "test"), tmp_path / "run"
    train_until(21, monkeypatch, config, run, how="die")
    folder = run / "checkpoints"
    shutil.copytree(folder / "step_000000020", folder / "step_000000020_mine")
    (folder / "step_000000010.tar.gz").write_bytes(b"mine")
    (folder / "step_000000015").write_bytes(b"a file")
    (folder / "partial_mine").mkdir()
    shutil.copytree(folder / "step_000000020", tmp_path / "elsewhere")
    (folder / "step_000000099").symlink_to(tmp_path / "elsewhere")
    killed = folder / "partial_000000031"
    killed.mkdir()
    (killed / "__0_0.distcp").write_bytes(b"half")
    mine = {"step_000000020_mine", "step_000000010.tar.gz", "step_000000015", "partial_mine", "step_000000099"}
    content = train(config, run, resume=True)
    assert {path.name for path in folder.iterdir()} == {*mine, "step_000000060"}
    assert (tmp_path / "elsewhere" / "position.json").exists()
    assert content["checkpoint"] == "step_000000060"
    assert content["train"]["steps"] == 40


def test_a_checkpoint_that_was_renamed_is_passed_over(tmp_path, monkeypatch):
    config, run = (
        validate(RunConfig, content_of(tmp_path, checkpoint={"every_steps": 10, "keep": 2}), "t"),
        tmp_path / "r",
    )
    train_until(21, monkeypatch, config, run, how="die")
    folder = run / "checkpoints"
    (folder / "step_000000020").rename(folder / "step_000000077")
    assert train(config, run, resume=True)["train"]["steps"] == 50
    assert "step_000000077 was renamed: it holds step 20; trying the next one" in (run / "log.txt").read_text()


@pytest.mark.parametrize("damage", ["cut", "position"])
def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path, damage):
    trainer_settings = {"epochs": 3, "log_every": 5, "threads": 1}
    changes = {"train_on_valid": False, "trainer": trainer_settings, "checkpoint": {"keep": 9}}
    config, run = validate(RunConfig, content_of(tmp_path, **changes), "test"), tmp_path / "run"
    train(config, run)
    order = sorted((run / "checkpoints").iterdir())
    for folder, score in zip(order, (0.9, 0.8, 0.7), strict=True):
        write_saved(folder, replace(read_saved(folder), score=score))
    best = order[0].name
    data = order[0] / "position.json" if damage == "position" else next(order[0].glob("__0_*"))
    data.write_bytes(data.read_bytes()[:-9])
    (run / "metrics.json").unlink()
    content = train(config, run, resume=True)
    assert content["checkpoint"] == order[1].name
    assert json.loads((run / "metrics.json").read_text())["checkpoint"] == order[1].name
    if damage == "cut":
        assert f"{best} is damaged: {data.name} is missing, cut short or changed" in (run / "log.txt").read_text()
        assert evaluate(run)["eval"] == content["eval"]


def test_damaged_checkpoints_with_larger_numbers_do_not_push_out_later_ones(tmp_path, monkeypatch):
    """Steps 10 to 40 are whole, 50 is not: what follows 40 is kept, though its numbers are smaller at first."""
    config, run = validate(RunConfig, content_of(tmp_path), "test"), tmp_path / "run"
    train_until(41, monkeypatch, config, run, how="die")
    folder = run / "checkpoints"
    shutil.copytree(folder / "step_000000040", folder / "step_000000058")
    (folder / "step_000000058" / "position.json").write_text("{")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_stop_requests", stopped_at_once)
        with pytest.raises(trainer.InterruptedRunError, match="stopped after step 41 of 60"):
            train(config, run, resume=True)
    assert saved(run) == ["step_000000041", "step_000000058"]
    content = train(config, run, resume=True)
    assert (content["checkpoint"], content["train"]["steps"]) == ("step_000000060", 19)
    assert saved(run) == ["step_000000060"]


@contextmanager
def stopped_at_once():
    """In place of the collector of signals: one is there already."""
    yield [trainer.signal.SIGTERM]


def test_infinite_weights_are_never_saved_though_the_loss_was_finite(tmp_path):
    """The loss of a step is computed before its update."""
    changes = {"optimizer": {"dense": {"lr": 1e38}}, "checkpoint": {"every_steps": 1, "keep": 9}}
    config = validate(RunConfig, content_of(tmp_path, **changes), "test")
    with pytest.raises(
        UserError, match=r"after step \d+ these weights .* are NaN or infinite: .*net\..*Nothing was saved"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists() or saved(tmp_path / "run") == []


def test_a_checkpoint_that_is_replaced_while_it_is_read_gives_way_to_the_later_one(tmp_path, monkeypatch):
    """Evaluating a run that is still training: it prunes the checkpoint that was chosen."""
    content = content_of(tmp_path, checkpoint={"keep": 9}, train_on_valid=False)
    config, run = validate(RunConfig, content, "test"), tmp_path / "run"
    train(config, run)
    first, last = sorted((run / "checkpoints").iterdir())
    write_saved(first, replace(read_saved(first), score=1.0))
    assert evaluate(run, "test", "best") != evaluate(run, "test", "last")
    load, seen = Checkpoints.load, []

    def pruned(checkpoints, model, folder, **options):
        seen.append(folder.name)
        if folder == first:
            shutil.rmtree(first)
        load(checkpoints, model, folder, **options)

    monkeypatch.setattr(Checkpoints, "load", pruned)
    assert evaluate(run, "test", "best") == evaluate(run, "test", "last")
    assert seen == [first.name, last.name, last.name]


def test_a_checkpoint_that_is_replaced_while_it_is_checked_is_not_called_damaged(tmp_path, monkeypatch, caplog):
    """All that were listed are gone before their checksums are done; a later one is there."""
    config, run = validate(RunConfig, content_of(tmp_path, checkpoint={"keep": 9}), "test"), tmp_path / "run"
    train(config, run)
    first, last = sorted((run / "checkpoints").iterdir())
    last.rename(tmp_path / "later")
    check = Checkpoints.check

    def replaced(checkpoints, folder):
        if folder == first and first.exists():
            shutil.rmtree(first)
            (tmp_path / "later").rename(last)
        check(checkpoints, folder)

    monkeypatch.setattr(Checkpoints, "check", replaced)
    assert evaluate(run, "test", "last")["eval"] == json.loads((run / "metrics.json").read_text())["eval"]
    assert "damaged" not in caplog.text
    assert "no checkpoint" not in caplog.text


def test_a_shorter_epoch_is_never_taken_for_a_finished_one(tmp_path, monkeypatch):
    """Step 29 of 30 on one process is step 14 of 15 on two: the last step, validation and checkpoint are to come."""
    loader = SimpleNamespace(rows=600, steps=15)
    saved_at = Saved(29, LoaderState(0, 29), 1, "", epoch_steps=30)
    config = validate(RunConfig, content_of(tmp_path), "test")
    log = SimpleNamespace(say=lambda _: None)
    assert train_run._loader_state(saved_at, loader, config, log) == LoaderState(0, 14)
    done = Saved(30, LoaderState(0, 30), 1, "", epoch_steps=30)
    assert train_run._loader_state(done, loader, config, log) == LoaderState(0, 15)


def test_commands_show_nothing_of_what_torch_says_about_torchrec(tmp_path):
    config, run = validate(RunConfig, content_of(tmp_path), "test"), tmp_path / "run"
    train(config, run)
    assert command("evaluate", run).stderr == ""
    done = torchrun(2, "evaluate", run)
    assert done.returncode == 0
    assert "FutureWarning" not in done.stderr
    assert "is_fx_tracing" not in done.stderr


def test_a_second_job_on_a_living_run_is_refused_and_on_a_dead_one_goes_on(tmp_path):
    """Real processes: the second is refused at once, and the first is not disturbed; a killed job does not block."""
    content = content_of(tmp_path, trainer={"epochs": 100_000, "log_every": 5, "threads": 1})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    run = tmp_path / "run"
    words = ["train", str(tmp_path / "run.yaml"), "--run-dir", str(run), "--restartable"]
    first = subprocess.Popen([sys.executable, "-m", "torchrec_xd.cli", *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoints").is_dir() or not saved(run):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = command(*words, check=False)
        assert second.returncode == 2
        assert f"run is in use by process {first.pid} on " in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    steps = [line["step"] for line in lines(run)]
    assert steps == [*range(5, steps[-1] + 1, 5)]  # of one job alone
    third = subprocess.Popen([sys.executable, "-m", "torchrec_xd.cli", *words], stderr=subprocess.DEVNULL)
    try:
        while lines(run)[-1]["step"] <= steps[-1]:
            assert third.poll() is None
            time.sleep(0.1)
        third.terminate()
        assert third.wait(60) == 75
    finally:
        third.kill()
        third.wait()


def test_data_that_cannot_teach_are_said(tmp_path):
    content = content_of(tmp_path, train_on_valid=False)
    for split in ("train", "valid"):
        file = tmp_path / "feed" / "post" / f"{split}.parquet"
        table = pq.read_table(file)
        negative = table.set_column(table.schema.get_field_index("click"), "click", pa.array([0] * table.num_rows))
        rows = negative.slice(0, 0) if split == "valid" else negative
        pq.write_table(rows, file, write_statistics=False)  # with them the run would be refused
    config = validate(RunConfig, content, "test")
    train(config, tmp_path / "run")
    said = (tmp_path / "run" / "log.txt").read_text()
    # twice 400 rows: two epochs
    assert (
        "warning: task click@post: all 800 training rows that were read are negative: there is nothing to tell apart"
        in said
    )
    assert "warning: the valid split holds no rows" in said
