"""One job at a time in a run folder."""

import json
import os
import signal
import socket

import pytest

from tests.support.held_folders import held
from torchrec_xd.errors import UserError
from torchrec_xd.run_lock import run_lock


@pytest.fixture
def holder(tmp_path):
    with held(tmp_path / "run") as process:
        yield process


def test_a_second_job_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(UserError) as error, run_lock(tmp_path / "run"):
        pass
    assert f"is in use by process {holder.pid} on {socket.gethostname()}, since 20" in str(error.value)
    assert (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_job_does_not_block(tmp_path, holder, how):
    holder.send_signal(how)
    holder.wait()
    assert json.loads((tmp_path / "run" / "run.lock").read_text())["process"] == holder.pid
    with run_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "run.lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "run").joinpath("run.lock").exists()


def test_a_folder_that_stays_empty_is_removed_and_no_other(tmp_path):
    with run_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with run_lock(tmp_path / "there" / "run"):
        (tmp_path / "there" / "run" / "config.yaml").write_text("x")
    assert [path.name for path in (tmp_path / "there" / "run").iterdir()] == ["config.yaml"]
    with run_lock(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


def test_a_lock_file_that_says_nothing_is_still_a_lock(tmp_path, holder):
    (tmp_path / "run" / "run.lock").write_text("")
    with pytest.raises(UserError, match="in use by another process"), run_lock(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    said = r"--run-dir .*file/run cannot be written: .*name another folder"
    with pytest.raises(UserError, match=said), run_lock(tmp_path / "file" / "run"):
        pass
    with pytest.raises(UserError, match=r"--run-dir .*file cannot be written"), run_lock(tmp_path / "file"):
        pass
