"""Slurm with two nodes, all on this machine: daemons with a folder, a key and ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

# Nodes are named by addresses, which need no name service: ranks meet at the name of the first node.
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={ports[1]} CPUs=4 RealMemory=90000
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={ports[2]} CPUs=4 RealMemory=90000
PartitionName=all Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""
NODES = ("127.0.0.1", "127.0.0.2")


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, as which Slurm's daemons run"
    lacking = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    return f"{', '.join(lacking)} not installed (Debian: slurm-wlm, munge)" if lacking else ""


@dataclass(frozen=True)
class Slurm:
    """Two nodes that take jobs."""

    folder: Path
    """Jobs are submitted from here, and write their output here."""
    config: Path

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs prints."""
        environment = {**os.environ, "SLURM_CONF": str(self.config)}
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=environment).stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, Requeue, Reason, ..."""
        first = self.ask("scontrol", "show", "job", number, "--oneliner").splitlines()[0]
        return dict(word.split("=", 1) for word in first.split() if "=" in word)

    def wait(self, number: str, condition: Callable[[dict[str, str]], bool], seconds: float) -> dict[str, str]:
        """The job, once the condition holds for it."""
        until(lambda: condition(self.job(number)), seconds, lambda: f"{self.job(number)}\n{self.said(number)}")
        return self.job(number)

    def ended(self, number: str, seconds: float) -> str:
        """The state in which the job ended."""
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        return self.wait(number, lambda job: job["JobState"] not in running, seconds)["JobState"]

    def start_again(self, number: str) -> None:
        """Have a requeued job start at once, where Slurm would hold it for two minutes, and with time enough."""
        self.wait(number, lambda job: job["JobState"] == "PENDING" and job["Restarts"] != "0", 120)
        # Not in the same second: the credential of the first start is revoked until then, and the second would fail.
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now+2", "TimeLimit=30")

    def ranks(self, number: str) -> dict[int, psutil.Process]:
        """The processes of a job that train, by rank."""
        return {int(env["RANK"]): process for process, env in _of_job(number) if "TORCHELASTIC_RUN_ID" in env}

    def endpoints(self, number: str) -> set[str]:
        """Where the nodes of a running job meet, over all stages."""
        commands = [process.cmdline() for process, _ in _of_job(number)]
        words = [words for words in commands if "torchrec_xd.launch.stages" in words]
        return {after for line in words for word, after in pairwise(line) if word == "--rdzv_endpoint"}

    def said(self, number: str) -> str:
        """The output of a job's tasks."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"slurm-{number}-*")))


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Return when the condition holds; an error, with what is known by then, when it does not for too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.05)


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Two idle nodes; nothing of them or their jobs is left afterwards."""
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    config = folder / "slurm.conf"
    with ExitStack() as taken:
        sockets = [taken.enter_context(closing(socket.socket())) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    config.write_text(CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], ports=ports, nodes=NODES))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    for name in ("state", "jobs", *NODES):
        (folder / name).mkdir()
    slurm = Slurm(folder / "jobs", config)
    munge = [f"--{name}={folder}/{name}" for name in ("key-file", "pid-file", "log-file", "seed-file")]
    munge[0] = f"--key-file={folder}/key"
    commands = {
        "munged": ["munged", "--foreground", "--force", *munge, f"--socket={folder}/munge.socket"],
        "slurmctld": ["slurmctld", "-D"],
        **{node: ["slurmd", "-D", "-N", node] for node in NODES},
    }
    daemons = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.out").open("w") as output:
                environment = {**os.environ, "SLURM_CONF": str(config)}
                streams = {"stdout": output, "stderr": subprocess.STDOUT}
                daemons.append(subprocess.Popen(command, env=environment, start_new_session=True, **streams))
            if name == "munged":
                until((folder / "munge.socket").exists, 20, (folder / "munged.out").read_text)
        until(lambda: _idle(slurm), 30, lambda: "\n".join(path.read_text() for path in folder.glob("*.out")))
        yield slurm
    finally:
        with suppress(subprocess.CalledProcessError, AssertionError):  # daemons that have not started
            slurm.ask("scancel", "--user=root")
            until(lambda: not slurm.ask("squeue", "--noheader"), 30, lambda: "jobs are left")
        for process in [*_jobs(config), *daemons]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in daemons:
            daemon.wait(20)


def _idle(slurm: Slurm) -> bool:
    try:
        return slurm.ask("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == "2"
    except subprocess.CalledProcessError:  # slurmctld does not answer yet
        return False


def _of_job(number: str) -> list[tuple[psutil.Process, dict[str, str]]]:
    """The processes of a job, with their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") == number:
                found.append((process, environment))
    return found


def _jobs(config: Path) -> list[psutil.Process]:
    """All processes that know the cluster's config."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("SLURM_CONF") == str(config) and process.pid != os.getpid():
                found.append(process)
    return found
