"""The run log: who speaks where, what is kept, and what a resumed run's files hold."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchrec_xd.errors import UserError
from torchrec_xd.log import Progress, RunLog


def rows(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def points(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_library_chatter_goes_to_the_file_and_what_we_say_to_both(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    with RunLog(tmp_path) as log:
        logging.getLogger("some.library").info("a plan")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        os.write(2, b"from C++\n")
        sys.stderr.write("from Python\n")
        log.say("epoch 1 [done]")
    sys.stderr.write("after\n")

    text = (tmp_path / "log.txt").read_text()
    for chatter in (
        "INFO some.library: a plan",
        "UserWarning: a warning",
        "from C++\n",
        "from Python\n",
    ):
        assert text.count(chatter) == 1
    assert "epoch 1 [done]" in text
    assert capfd.readouterr().err == "epoch 1 [done]\nafter\n"
    assert "after" not in text
    assert logging.getLogger().handlers == before


def test_an_exception_is_in_the_file_and_on_the_screen(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from torchrec_xd.log import RunLog\n"
        "with RunLog(Path(sys.argv[1])):\n"
        "    os.write(2, b'chatter')\n"
        "    raise ValueError('no such table')\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.endswith("ValueError: no such table\n")
    assert "chatter" not in run.stderr
    text = (tmp_path / "log.txt").read_text()
    for written in ("chatter", "the run ended with ValueError", "ValueError: no such table"):
        assert written in text


def test_other_ranks_are_silent_and_write_no_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, rank=1) as log, log.progress(10) as progress:
        log.say("hello")
        log.metrics(1, {"loss": 1.0})
        progress.update(10)
    assert [path.name for path in tmp_path.iterdir()] == ["log.rank1.txt"]
    assert "hello" in (tmp_path / "log.rank1.txt").read_text()
    assert capfd.readouterr().err == ""


def test_without_a_directory_nothing_is_kept_and_stderr_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(None) as log:
        log.metrics(1, {"loss": 1.0})
        log.truncate_after(0)
        log.say("hello")
        os.write(2, b"chatter\n")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == "hello\nchatter\n"


def test_metrics_are_on_disk_at_once_and_json_has_no_nan(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.metrics(5, {"loss": 0.25, "auc": math.nan, "best": -math.inf, "rows": 7, "split": "valid", "gauc": None})
        line = (tmp_path / "metrics.jsonl").read_text()
        assert points(tmp_path, "loss") == [(5, 0.25)]
    assert line == ('{"step": 5, "loss": 0.25, "auc": null, "best": null, "rows": 7, "split": "valid", "gauc": null}\n')
    assert points(tmp_path, "rows") == [(5, 7.0)]
    with pytest.raises(KeyError):
        points(tmp_path, "auc")


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with RunLog(whole) as log:
        for step in range(10):
            log.metrics(step, {"loss": 1 / (step + 1)})
    with RunLog(broken) as log:
        for step in range(8):
            log.metrics(step, {"loss": 1 / (step + 1)})
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with RunLog(broken) as log:
        log.truncate_after(4)
        assert [row["step"] for row in rows(broken)] == [0, 1, 2, 3, 4]
        for step in range(5, 10):
            log.metrics(step, {"loss": 1 / (step + 1)})
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert points(broken, "loss") == points(whole, "loss")
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize("line", ["not json", '{"loss": 1}', '{"step": "five"}', "[1]"])
def test_a_foreign_metrics_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with (
        RunLog(tmp_path) as log,
        pytest.raises(UserError, match=r"metrics\.jsonl:2: .*(remove the line|file is damaged)"),
    ):
        log.truncate_after(5)
    assert (tmp_path / "metrics.jsonl").read_text() == f'{{"step": 1}}\n{line}\n'


@pytest.mark.parametrize("last", [(), (44,)])
def test_progress_without_a_terminal_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, last) -> None:
    clock = iter([100.0, 105.0, 111.0, 115.0, 121.0, *(125.0 for _ in last), 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    screen = io.StringIO()
    with Progress(Console(file=screen), total=100, done=20) as progress:
        for done in (25, 31, 35, 41, *last):  # at 5, 11, 15 and 21 seconds; the end comes at 30
            progress.update(done, f"loss 0.{done}")
    assert screen.getvalue().splitlines() == [
        "31/100  loss 0.31  11 s gone, 69 s left",  # 11 steps in 11 seconds, 69 to go
        "41/100  loss 0.41  21 s gone, 59 s left",
        *("44/100  loss 0.44  30 s gone, 70 s left" for _ in last),  # 24 steps in 30 seconds: 56 / 0.8; told once
    ]


def test_progress_on_a_terminal_is_a_bar() -> None:
    screen = io.StringIO()
    with Progress(Console(file=screen, force_terminal=True, width=100), total=50, done=0) as progress:
        progress.update(30, "loss [0.5]")
        progress._bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "30/50" in text
    assert "loss [0.5]" in text
    assert "gone" not in text


def test_in_a_notebook_the_bar_is_drawn_in_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's output is an object of Jupyter's kernel and no file descriptor; `\\r` overwrites its last line."""

    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    cell = OutStream()
    monkeypatch.setattr("sys.stderr", cell)
    with RunLog(tmp_path / "run") as log, log.progress(2) as progress:
        log.say("two steps")
        progress.update(2, "loss 0.5")
    assert "two steps" in cell.getvalue()
    assert "\r" in cell.getvalue()
    assert "2/2" in cell.getvalue()
