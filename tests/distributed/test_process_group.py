"""What the environment says about the processes, and errors that several of them have."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from torchrec_xd.distributed import process_group as start
from torchrec_xd.distributed.device import own_device, refuse_shared_gpu
from torchrec_xd.distributed.process_group import ProcessSettings, process_group
from torchrec_xd.errors import OutageError, UserError

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def alone(monkeypatch):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in (*names, "CUDA_VISIBLE_DEVICES"):
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
from torchrec_xd.errors import InterruptedRunError, OutageError, UserError

def fail(error):
    raise error

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
            processes.on_main(lambda: fail(UserError("told main")))
        if kind == "outage":
            try:
                processes.on_main(lambda: fail(OutageError("told outage")))
            except OutageError:
                print("outage of rank", processes.rank, flush=True)
                raise
        if processes.rank == 1:
            raise UserError("told one")
        processes.barrier()

run_command(command)
"""


@pytest.mark.parametrize("kind", ["before", "inside", "stopped", "one", "main", "outage"])
def test_an_error_is_told_once(tmp_path, kind):
    """Also where rank 1 alone has it."""
    (tmp_path / "job.py").write_text(RAISE)
    done = subprocess.run(
        [*TORCHRUN, tmp_path / "job.py", kind], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count(f"told {kind}") == 1, done.stderr
    assert ("error: told" in done.stderr) == (kind != "stopped")
    if kind == "outage":
        assert {"outage of rank 0", "outage of rank 1"} <= set(done.stdout.splitlines())
    if kind in ("main", "outage"):  # the others are told, and not left in a collective that breaks
        assert "Connection closed" not in done.stderr


@pytest.mark.parametrize("inherited", [{"LOCAL_RANK": "1"}, {"LOCAL_RANK": "1", "RANK": "1"}, {"WORLD_SIZE": "2"}])
def test_an_error_is_told_where_half_a_group_is_inherited(alone, inherited):
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_xd.cli", "config", "show", "nosuch"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **inherited},
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: no shipped config 'nosuch'" in done.stderr


class Gpus:
    """A machine with GPUs, as torch.cuda shows them to one process; gloo stands in for NCCL."""

    def __init__(self, monkeypatch, visible, uuids=("GPU-a", "GPU-b", "GPU-c", "GPU-d")):
        self.used, self.asked, initialise = [], {}, dist.init_process_group

        def initialised(backend, **options):
            self.asked = {"backend": backend, **options}
            initialise("gloo", **{key: value for key, value in options.items() if key != "device_id"})

        def properties(device):
            return SimpleNamespace(name="NVIDIA H100", uuid=uuids[device.index])

        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        monkeypatch.setattr(torch.cuda, "set_device", self.used.append)
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(dist, "init_process_group", initialised)


def test_on_a_gpu_the_group_is_bound_to_it(alone):
    gpus = Gpus(alone, visible=2)
    with process_group() as processes:
        assert processes.device == torch.device("cuda", 0)
    assert gpus.used == [torch.device("cuda", 0)]
    assert gpus.asked["backend"] == "cuda:nccl,cpu:gloo"
    assert gpus.asked["device_id"] == torch.device("cuda", 0)


def test_on_a_cpu_the_group_is_bound_to_nothing(alone):
    gpus = Gpus(alone, visible=0)
    with process_group() as processes:
        assert processes.device == torch.device("cpu")
    assert (gpus.used, gpus.asked["backend"], gpus.asked["device_id"]) == ([], "gloo", None)


def test_how_long_processes_wait_for_each_other_is_a_setting(alone):
    gpus = Gpus(alone, visible=0)
    with process_group(ProcessSettings(timeout_s=7)):
        assert gpus.asked["store"].timeout == timedelta(seconds=7)
    assert gpus.asked["timeout"] == timedelta(seconds=7)
    with process_group():
        pass
    assert gpus.asked["timeout"] == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[unbound_buffer.cc:81] gloo: Timed out waiting 7000ms for recv operation to complete", "waited 7 s"),
        ("Application timeout caused pair closure", "waited 7 s"),
        ("[pair.cc:547] Connection closed by peer [127.0.0.1]:4711", "lost its connection to another process"),
        ("Gloo connectFullMesh failed with [pair.cc:152] connect [127.0.0.1]:4711: No route to host", "lost its conn"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "lost its connection to another process"),
        (dist.DistStoreError("wait timeout after 7000ms, keys: /group"), "waited 7 s"),
        (
            dist.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:91, remote process exited or there was a network error"
            ),
            "lost its connection to another process",
        ),
    ],
)
def test_what_torch_says_of_the_network_becomes_an_outage(said, told):
    with pytest.raises(OutageError, match=f"rank 1 of 2, on .*{told}") as error, start._outages(1, 2, 7):
        raise said if isinstance(said, RuntimeError) else RuntimeError(said)
    assert error.value.told is False  # every rank says it
    with pytest.raises(RuntimeError, match=re.escape(str(said))), start._outages(0, 1, 7):
        raise RuntimeError(str(said))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(
            "[enforce fail at gloo/transport/tcp/pair.cc:464] op.preamble.length <= op.nbytes. 40000 vs 4. Received "
            "data size doesn't match expected size. Is there a distributed collective mismatch in your code?"
        ),
        RuntimeError("Tensors must be CPU and dense: ProcessGroupGloo::allreduce"),
        dist.DistBackendError("NCCL error in: NCCLUtils.cpp:91, invalid usage (run with NCCL_DEBUG=WARN for details)"),
        dist.DistBackendError("NCCL error in: NCCLUtils.cpp:91, unhandled cuda error (run with NCCL_DEBUG=INFO)"),
    ],
)
def test_what_is_no_outage_stays_what_it_is(error):
    with pytest.raises(type(error), match=re.escape(str(error))), start._outages(0, 2, 7):
        raise error


def launched(alone, **environment):
    alone.setenv("MASTER_ADDR", "localhost")
    alone.setenv("MASTER_PORT", "1")
    for name, value in environment.items():
        alone.setenv(name, value)


@pytest.mark.parametrize("visible", [2, 3])
def test_more_processes_than_gpus_are_refused_before_they_meet(alone, visible):
    """Every rank finds it by itself: also those that would have had a GPU."""
    Gpus(alone, visible)
    alone.setenv("CUDA_VISIBLE_DEVICES", "4,5,6"[: 2 * visible - 1])
    alone.setattr(start, "rendezvous", lambda *_, **__: pytest.fail("met the others"))
    for rank in ("0", "3"):
        launched(alone, RANK=rank, WORLD_SIZE="8", LOCAL_RANK=rank, LOCAL_WORLD_SIZE="4")
        with pytest.raises(UserError) as error, process_group():
            pass
        text = str(error.value)
        assert text.startswith(f"4 processes on this machine, but {visible} GPUs are visible to each")
        assert f"LOCAL_RANK={rank}, LOCAL_WORLD_SIZE=4, CUDA_VISIBLE_DEVICES={'4,5,6'[: 2 * visible - 1]}" in text
        assert f"torchrun --nproc-per-node {visible}" in text


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "index"),
    [("3", "4", 4, 3), ("1", "2", 4, 1), ("3", "4", 1, 0), ("3", None, 1, 0), ("1", None, 4, 1)],
)
def test_which_gpu_a_process_takes(alone, local_rank, local_size, visible, index):
    """A launcher that shows every process its own GPU alone (Slurm's --gpus-per-task=1) has it as number 0."""
    Gpus(alone, visible)
    launched(alone, LOCAL_RANK=local_rank, **({} if local_size is None else {"LOCAL_WORLD_SIZE": local_size}))
    assert own_device(int(local_rank), int(local_size or 1)) == torch.device("cuda", index)


def test_two_processes_on_the_same_gpu_are_refused(alone):
    """One visible GPU may be each process's own, or the same for all: its UUID tells."""
    Gpus(alone, visible=1, uuids=("GPU-a",))
    launched(alone, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    store, gpu = dist.HashStore(), torch.device("cuda", 0)
    refuse_shared_gpu(store, 0, gpu)
    refuse_shared_gpu(store, 0, gpu)  # a second group of the same process
    with pytest.raises(UserError, match=r"processes 0 and 1 would use the same GPU \(NVIDIA H100, GPU-a\)") as error:
        refuse_shared_gpu(store, 1, gpu)
    assert "LOCAL_RANK=1, LOCAL_WORLD_SIZE=2, CUDA_VISIBLE_DEVICES" in str(error.value)
    Gpus(alone, visible=1, uuids=("GPU-b",))
    refuse_shared_gpu(store, 2, gpu)
