"""With which exit code our torchrun leaves, and that it leaves."""

import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import ROOT

ELASTIC = ["-m", "torchrec_xd.distributed.elastic", "--standalone", "--nproc-per-node", "2"]
# What rank 0 and rank 1 do once both have started.
RANK = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
here = pathlib.Path(__file__).parent
(here / os.environ["RANK"]).touch()
while not all((here / rank).exists() for rank in "01"):
    time.sleep(0.02)
code = int(sys.argv[1 + int(os.environ["RANK"])])
os.kill(os.getpid(), 9) if code == 9 else sys.exit(code)
"""
WAITING = """
import os, time
from torchrec_xd.distributed.process_group import ProcessSettings, process_group
from torchrec_xd.error_boundary import run_command

def command():
    with process_group(ProcessSettings(timeout_s=2)) as processes:
        if processes.rank == 1:
            time.sleep(60)
        processes.barrier()

run_command(command)
"""
# Its process has ended, and it does not look.
STUCK = """
import subprocess, sys, time
from torchrec_xd.distributed import elastic

def waits(arguments):
    subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(60)

elastic.run.main, elastic.STUCK_SECONDS = waits, 1.0
sys.exit(elastic.main([]))
"""

# Takes torchrun for stuck after three seconds.
SOON = """
import sys
from torchrec_xd.distributed import elastic

elastic.STUCK_SECONDS = 3.0
sys.exit(elastic.main(sys.argv[1:]))
"""
# Asked to stop, rank 0 takes its time and the others none. Rank 2 dies, when first started.
SLOW_TO_STOP = """
import os, pathlib, signal, sys, time
rank, folder, asked = os.environ["RANK"], pathlib.Path(sys.argv[1]), []
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(folder / f"ready{rank}").touch()
if rank == "2":
    time.sleep(0.5)
    sys.exit(1)
while not asked:
    time.sleep(0.05)
if rank == "0":
    time.sleep(7)
    (folder / "saved").touch()
sys.exit(75)
"""


def python(*words):
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((1, 2), 2), ((75, 0), 75), ((9, 0), 137)])
def test_the_code_is_that_of_the_process_that_failed(tmp_path, codes, code):
    """An error of the user wins: with it nothing is to be tried again."""
    (tmp_path / "rank.py").write_text(RANK)
    done = python(*ELASTIC, tmp_path / "rank.py", *codes)
    assert done.returncode == code, done.stderr
    assert ("SIGKILL" in done.stderr) == (code == 137)
    assert "Traceback" not in done.stderr


def test_a_process_that_hangs_is_waited_for_as_long_as_the_setting_says(tmp_path):
    (tmp_path / "job.py").write_text(WAITING)
    done = python(*ELASTIC, tmp_path / "job.py")
    assert done.returncode == 75
    (told,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert "error: rank 0 of 2, on " in told
    assert "waited 2 s (trainer.timeout_s) for the other processes in vain: one of them hangs, or the network" in told
    assert "Traceback" not in done.stderr


def test_it_does_not_wait_for_the_network_when_its_processes_have_ended():
    done = python("-c", STUCK)
    assert (done.returncode, done.stderr.count("hears nothing from the node")) == (75, 1)


def test_processes_asked_to_stop_have_the_time_that_torchelastic_gives_them(tmp_path):
    (tmp_path / "job.py").write_text(SLOW_TO_STOP)
    command = [sys.executable, "-c", SOON, *ELASTIC[2:], tmp_path / "job.py", tmp_path]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        until = time.monotonic() + 30
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=30)
    assert (tmp_path / "saved").exists(), said
    assert (job.returncode, "hears nothing" in said) == (75, False)


def test_a_restart_waits_for_the_processes_that_still_stop(tmp_path):
    (tmp_path / "job.py").write_text(SLOW_TO_STOP)
    three = ["--standalone", "--nproc-per-node", "3", "--max-restarts", "1"]
    done = python("-c", SOON, *three, tmp_path / "job.py", tmp_path)
    assert (done.returncode, "hears nothing" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "saved").exists()
