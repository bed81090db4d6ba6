"""TorchX components: `torchx run launch/components.py:pretrain --help` lists a component's arguments.

TorchX reads the annotations as types: no `from __future__ import annotations` here. It also runs this file by its path,
so nothing is imported from its folder.
"""
# ruff: noqa: D417 - the decorator documents `assign`, `run` and `job`

import functools
import inspect
import logging
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from torchx import specs
from torchx.components.dist import ddp

from torchrec_xd.error_boundary import fail
from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path
from torchrec_xd.schema import Split

PORT = 29500
"""Where the first stage's nodes find each other; every further stage has the port after."""
SLURM_PORTS = 1500
"""Jobs of Slurm may share their first node: each has two ports from PORT on, by its number modulo this one. All are
below 32768, where Linux begins to give out ports by itself."""

CPU_MEMORY = 8192
"""MB of a node without GPUs, where nobody says how much."""
GPU_CPUS, GPU_THREADS, GPU_MEMORY = 8, 4, 65_536
"""CPUs, threads and MB for each GPU, where nobody says how many. Nodes with A100 or H100 have more (AWS p4d: 12 CPUs
and 144 GiB for each, p5: 24 and 256). The CPUs above the threads are for reading, the backward pass and NCCL."""


@dataclass(frozen=True)
class Job:
    """What a job runs on, and how often it is tried.

    Args:
        j: nodes x processes per node, for example 2x8; with GPUs, one process for each.
        threads: CPU threads of a process, where the config's trainer.threads is 0; 0 is 1, with GPUs 4.
        cpu: CPUs per node; 0 is processes x threads, with GPUs at least 8 for each.
        gpu: GPUs per node.
        memMB: memory per node, in MB; 0 is 8192, with GPUs 65536 for each.
        image: container image with this project as its working directory; local and Slurm jobs need none.
        mounts: what containers see of the cluster: type=bind,src=/data,dst=/data or type=volume,src=NAME,dst=/data.
        interface: network interface by which nodes reach each other, for gloo and NCCL. Default: they choose.
        env: further environment variables, as A=1,B=2.
        max_restarts: how often torchelastic starts all processes again after one died; they resume.
        max_retries: how often the scheduler submits a failed job again; it resumes.
        stop_before: seconds before Slurm's time limit at which a job is asked to stop: it writes a checkpoint and is
            requeued, as one of its retries; 0 is never. As long torchelastic waits for processes asked to stop.
    """

    j: str = "1x2"
    threads: int = 0
    cpu: int = 0
    gpu: int = 0
    memMB: int = 0
    image: str = ""
    mounts: list[str] = field(default_factory=list)
    interface: str = ""
    env: dict[str, str] = field(default_factory=dict)
    max_restarts: int = 0
    max_retries: int = 0
    stop_before: int = 120

    @property
    def processes(self) -> int:
        """Processes per node."""
        return int(self.j.partition("x")[2])

    @property
    def threads_each(self) -> int:
        """CPU threads of a process."""
        if self.threads or not self.gpu:
            return self.threads or 1
        return max(1, min(GPU_THREADS, self.cpus // self.processes))

    @property
    def cpus(self) -> int:
        """CPUs per node."""
        return self.cpu or self.processes * max(self.threads or 1, GPU_CPUS if self.gpu else 1)

    @property
    def memory(self) -> int:
        """Memory per node, in MB."""
        return self.memMB or (self.gpu * GPU_MEMORY if self.gpu else CPU_MEMORY)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.j):
            raise UserError(f"-j {self.j}: expected NODESxPROCESSES, both at least 1, for example 2x8")
        for name in ("threads", "cpu", "gpu", "memMB", "max_restarts", "max_retries", "stop_before"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: at least 0")
        if self.gpu and self.gpu != self.processes:
            raise UserError(f"-j {self.j} --gpu {self.gpu}: every process takes one GPU of its node; make them equal")
        if self.cpus < (needed := self.processes * self.threads_each):
            raise UserError(f"--cpu {self.cpu}: {self.processes} processes x {self.threads_each} threads need {needed}")
        try:
            specs.parse_mounts(self.mounts)
        except (KeyError, ValueError) as error:
            raise UserError(f"--mounts {','.join(self.mounts)}: {error}") from None


@dataclass(frozen=True)
class Run:
    """What is trained, and where.

    Args:
        assign: a.b=VALUE on top of the config, any number of them, after all options.
        config: YAML file of the run; of the component's own model.
        run_dir: folder for everything the run writes, seen by all nodes.
    """

    config: str
    run_dir: str

    def command(self, assign: Sequence[str], model: str | None = None) -> list[str]:
        """The train command of a config that has been read to its end, so that no job waits in a queue to fail."""
        logging.disable(logging.INFO)  # FBGEMM would list its libraries in TorchX's output
        try:
            from torchrec_xd.config import load_config  # noqa: PLC0415 - takes seconds, and --help needs none of it
        finally:
            logging.disable(logging.NOTSET)
        local_path(self.run_dir, "--run_dir")
        found = load_config(Path(self.config), list(assign)).model.name
        if model not in (None, found):
            raise UserError(f"{self.config} trains '{found}', not '{model}'; the component `train` takes any model")
        settings = [word for assignment in assign for word in ("--set", assignment)]
        return ["train", self.config, "--run-dir", self.run_dir, "--restartable", *settings]


def component(function: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
    """A TorchX component: `run` and `job` are given field by field, and a UserError is a message and exit code 2."""
    own = inspect.signature(function)
    parts: dict[str, type[Any]] = {
        name: given.annotation for name, given in own.parameters.items() if given.annotation in (Run, Job)
    }

    @functools.wraps(function)
    def launched(*words: str, **options: object) -> specs.AppDef:
        try:
            for name, part in parts.items():
                given = {f.name: options.pop(f.name) for f in fields(part) if f.name in options}
                # TorchX gives None for an empty list or mapping.
                options[name] = part(**{key: value for key, value in given.items() if value is not None})
            return function(*words, **options)
        except UserError as error:
            fail(error)

    kept = [parameter for name, parameter in own.parameters.items() if name not in parts]
    added = [_option(f) for part in parts.values() for f in fields(part)]
    launched.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    summary = inspect.getdoc(function) or ""
    arguments = [(inspect.getdoc(part) or "").partition("Args:")[2] for part in parts.values()]
    launched.__doc__ = summary + ("" if "Args:" in summary else "\n\nArgs:") + "".join(arguments)
    return launched


def _option(described: Field[object]) -> inspect.Parameter:
    made = described.default_factory
    default = described.default if made is MISSING else made()
    empty = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(described.name, inspect.Parameter.KEYWORD_ONLY, default=empty, annotation=described.type)


@component
def train(*assign: str, run: Run, job: Job) -> specs.AppDef:
    """Train any model; started again with the same arguments, it resumes, or ends at once if it was finished."""
    return launch("train", job, run.command(assign))


@component
def pretrain(*assign: str, run: Run, job: Job) -> specs.AppDef:
    """Train MKT's first stage (mkt_pretrain): all domains together."""
    return launch("pretrain", job, run.command(assign, "mkt_pretrain"))


@component
def finetune(*assign: str, init_from: str, run: Run, job: Job) -> specs.AppDef:
    """Train MKT's second stage (mkt_finetune): the target domain, taught by a finished first stage.

    Args:
        init_from: run folder of the first stage.
    """
    return launch("finetune", job, run.command((*assign, f"init_from={init_from}"), "mkt_finetune"))


@component
def exit(*assign: str, run: Run, job: Job) -> specs.AppDef:
    """Train EXIT."""
    return launch("exit", job, run.command(assign, "exit"))


@component
def mkt(*assign: str, pretrain: str, finetune: str, run_dir: str, job: Job) -> specs.AppDef:
    """Train both stages of MKT as one job: the second starts when the first has succeeded.

    Started again, it skips a finished first stage and resumes a begun one.

    Args:
        assign: a.b=VALUE for both stages, pretrain.a.b=VALUE or finetune.a.b=VALUE for one, after all options.
        pretrain: YAML file of the first stage, a run of mkt_pretrain.
        finetune: YAML file of the second stage, a run of mkt_finetune.
        run_dir: folder for the two run folders, pretrain and finetune, seen by all nodes.
    """
    first, second = f"{run_dir}/pretrain", f"{run_dir}/finetune"
    return launch(
        "mkt",
        job,
        Run(pretrain, first).command(_of_stage("pretrain", assign), "mkt_pretrain"),
        Run(finetune, second).command((*_of_stage("finetune", assign), f"init_from={first}"), "mkt_finetune"),
    )


@component
def evaluate(*, run_dir: str, split: str = "test", checkpoint: str = "best", out: str = "", job: Job) -> specs.AppDef:
    """Measure a finished run, whatever the number of processes that trained it.

    Args:
        run_dir: folder of the run; its config is there.
        split: train, valid or test.
        checkpoint: best or last.
        out: JSON file to write the report to, besides the log.
    """
    for name, value, choices in (("split", split, get_args(Split)), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in choices:
            raise UserError(f"--{name} {value}: one of {', '.join(choices)}")
    for option, path in (("--run_dir", run_dir), ("--out", out)):
        local_path(path, option)
    written = ["--json", out] if out else []
    return launch("evaluate", job, ["evaluate", run_dir, "--split", split, "--checkpoint", checkpoint, *written])


@component
def benchmark(*, command: str, args: str = "", job: Job) -> specs.AppDef:
    """Measure throughput, on the job's processes: python -m torchrec_xd.benchmark COMMAND ARGS.

    Args:
        command: what is measured; `python -m torchrec_xd.benchmark --help` lists the commands.
        args: the command's own arguments, as one string.
    """
    try:
        words = shlex.split(args)
    except ValueError as error:
        raise UserError(f"--args {args}: {error}; write them as for a shell") from None
    return launch("benchmark", job, [command, *words], module="torchrec_xd.benchmark")


def launch(name: str, job: Job, *stages: list[str], module: str = "torchrec_xd.cli") -> specs.AppDef:
    """One role of `job`'s nodes; on each, torchrun runs the stages' commands of `module` one after the other."""
    env = {
        "OMP_NUM_THREADS": str(job.threads_each),
        "PET_MAX_RESTARTS": str(job.max_restarts),  # PET_*: torchrun's options
        **({"PET_SHUTDOWN_TIMEOUT": str(job.stop_before)} if job.stop_before else {}),
        # A store for every start: with torch's shared one, restarted ranks may look for addresses of dead ones.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if job.interface:
        env |= {"GLOO_SOCKET_IFNAME": job.interface, "NCCL_SOCKET_IFNAME": job.interface}
    apps = [
        ddp(
            *stage,
            m=module,
            name=f"torchrec-xd/{name}",
            image=job.image,
            j=job.j,
            cpu=job.cpus,
            gpu=job.gpu,
            memMB=job.memory,
            env={**env, **job.env},
            # Each stage has its own port: nodes that are done early must not meet the stage before.
            rdzv_port=PORT + place,
            max_retries=job.max_retries,
            mounts=job.mounts,
        )
        for place, stage in enumerate(stages)
    ]
    (role,) = apps[0].roles
    role.name = name
    commands = [_elastic(app.roles[0].args[1], PORT + place) for place, app in enumerate(apps)]
    stages_run = f"exec python -m torchrec_xd.launch.stages --stop-before {job.stop_before}"
    role.args = ["-c", f"{stages_run} {' --then '.join(commands)}"]
    role.port_map = {f"c10d-{place}": PORT + place for place in range(len(apps))}
    return apps[0]


def _elastic(torchrun: str, port: int) -> str:
    """TorchX's command with our torchrun, and with a port of the job's own on Slurm."""
    own_port = f"$$(({port}+2*($${{SLURM_JOB_ID_HET_GROUP_0:-0}}%{SLURM_PORTS})))"  # TorchX takes $$ for $
    return torchrun.replace("torchrun ", "python -m torchrec_xd.distributed.elastic ", 1).replace(
        f":{port} ", f":{own_port} ", 1
    )


def _of_stage(stage: str, assign: Sequence[str]) -> list[str]:
    """The assignments for `stage`: those that name it, without its name, and those that name none."""
    others = {"pretrain", "finetune"} - {stage}
    mine = [assignment for assignment in assign if assignment.partition(".")[0] not in others]
    return [assignment.removeprefix(f"{stage}.") for assignment in mine]
