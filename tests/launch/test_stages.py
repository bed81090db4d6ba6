"""Commands one after the other, as processes: what runs, what does not, and who hears a signal."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import ROOT

# Says who it is, then counts the requests to stop for a moment before it leaves.
PATIENT = """
import os, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
print(os.getpgrp(), flush=True)
while not heard: time.sleep(0.01)
time.sleep(0.3)
print("told", len(heard), flush=True)
sys.exit(75)
"""


@pytest.fixture
def start():
    """Start the commands, each given as Python code; returns the process that runs them, of a session of its own."""
    started = []

    def begin(*commands, stop_before=0):
        words = [[sys.executable, "-c", command] for command in commands]
        joined = [word for command in words for word in ("--then", *command)][1:]
        early = ["--stop-before", str(stop_before)] if stop_before else []
        whole = [sys.executable, "-m", "torchrec_xd.launch.stages", *early, *joined]
        started.append(subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.wait(30)


def test_one_after_the_other_to_the_end(start):
    slow = "import time; time.sleep(0.3); print('first', flush=True)"
    process = start(slow, "print('second', flush=True)", "print('third')")
    said, _ = process.communicate(timeout=30)
    assert said.split() == ["first", "second", "third"]
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("first", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)]
)
def test_a_failure_is_the_end_and_the_exit_code(start, first, code):
    process = start(first, "print('second')")
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("", code)


@pytest.mark.parametrize("tell", [os.kill, os.killpg], ids=["process", "whole group"])
def test_a_stop_request_reaches_the_running_command_once_and_is_waited_for(start, tell):
    process = start(PATIENT, "print('second')")
    assert int(process.stdout.readline()) != process.pid  # in the same group it would hear a request to all twice
    tell(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert said.split() == ["told", "1"]
    assert process.returncode == 75


def test_after_a_stop_request_nothing_more_is_started(start):
    # The first command leaves well all the same; the job was told to stop, so the second must not begin.
    process = start(PATIENT.replace("75", "0"), "print('second')")
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "second" not in said
    assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """Stand-ins for Slurm's programs: `squeue` tells when the job ends, `scontrol` notes what it is asked."""

    def says(end):
        for name, content in {"squeue": f"echo {end}", "scontrol": f"echo $@ >> {tmp_path}/asked"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "71")
        return tmp_path / "asked"

    return says


def test_before_the_time_limit_of_a_slurm_job_the_command_is_asked_to_stop(start, slurm_says):
    asked = slurm_says(int(time.time()) + 40)  # ten seconds for starting on a busy machine
    process = start(PATIENT, "print('second')", stop_before=30)
    said, _ = process.communicate(timeout=30)
    assert said.split()[1:] == ["told", "1"]
    assert process.returncode == 75
    assert not asked.exists()  # to be requeued


def test_a_time_limit_that_comes_first_is_refused(start, slurm_says):
    asked = slurm_says(int(time.time()) + 20)
    process = start("print('first')", stop_before=30)
    assert (process.communicate(timeout=30)[0], process.returncode) == ("", 2)
    assert asked.read_text() == "update Requeue=0 JobId=71\n"


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_of_the_user_is_not_to_be_requeued(start, slurm_says, code):
    asked = slurm_says("N/A")
    process = start(f"raise SystemExit({code})", stop_before=30)
    assert process.wait(30) == code
    assert asked.exists() == (code == 2)
