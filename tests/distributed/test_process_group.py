"""What the environment says about the processes, and errors that several of them have."""

import os
import subprocess
import sys

import pytest

from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is '', no number"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', no number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2, .*no such rank"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "two"}, "LOCAL_RANK is 'two', no number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and MASTER_ADDR and MASTER_PORT missing"),
    ],
)
def test_half_a_group_is_refused(alone, environment, said):
    for name, value in environment.items():
        alone.setenv(name, value)
    with pytest.raises(UserError, match=f"{said}.*; start several processes with torchrun"), process_group():
        pass


def test_without_a_launcher_there_is_one_process(alone):
    with process_group() as processes:
        assert (processes.rank, processes.size, processes.local_size) == (0, 1, 1)
    alone.setenv("RANK", "0")
    alone.setenv("WORLD_SIZE", "1")
    with process_group() as processes:
        assert (processes.rank, processes.size) == (0, 1)


RAISE = """
import os, sys
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import InterruptedRunError, UserError

def fail(text):
    raise UserError(text)

def command():
    kind = sys.argv[1]
    if kind == "before":
        raise UserError("told before")
    with process_group() as processes:
        if kind == "inside":
            raise UserError("told inside")
        if kind == "stopped":
            raise InterruptedRunError("told stopped")
        if kind == "main":
            processes.on_main(lambda: fail("told main"))
        if processes.rank == 1:
            raise UserError("told one")
        processes.barrier()

run_command(command)
"""


@pytest.mark.parametrize("kind", ["before", "inside", "stopped", "one", "main"])
def test_an_error_is_told_once(tmp_path, kind):
    """Also where rank 1 alone has it."""
    (tmp_path / "job.py").write_text(RAISE)
    done = subprocess.run(
        [*TORCHRUN, tmp_path / "job.py", kind], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count(f"told {kind}") == 1, done.stderr
    assert ("error: told" in done.stderr) == (kind != "stopped")
    if kind == "main":  # the others are told, and not left in a collective that breaks
        assert "Connection closed" not in done.stderr


@pytest.mark.parametrize("inherited", [{"LOCAL_RANK": "1"}, {"LOCAL_RANK": "1", "RANK": "1"}, {"WORLD_SIZE": "2"}])
def test_an_error_is_told_where_half_a_group_is_inherited(alone, inherited):
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_xd.cli", "config", "show", "nosuch"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **inherited},
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: no shipped config 'nosuch'" in done.stderr
