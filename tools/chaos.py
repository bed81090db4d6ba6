"""Recovery put to the test: a run whose processes are killed again and again must end with the bits of one left alone.

    python -m tools.chaos configs/mkt_cj_pretrain.yaml --kills 20 --json out.json

Trains the config twice under torchrun, with `--restartable`. The first run is left alone. In the second, at random
times, one random rank gets SIGKILL, or (one time in four) all get SIGTERM; torchelastic starts all of them again. Then
both runs' last checkpoints (weights, optimizer state, random generators), metrics.json and metrics.jsonl are compared,
but for what was measured by the clock. Exit code 1 if anything differs. Linux only: it reads /proc.

With `--partition`, as root, both runs are on two machines (network namespaces of this one), and in place of kills the
wire between them is cut, in turn for 5 s and for good (tools/partition.py).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console

from tools import partition, two_machines
from torchrec_xd.checkpoint.reading import Reader, load
from torchrec_xd.config import load_config
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError

POLL_SECONDS = 0.005
EVERY_STEPS = 10
"""Steps between two checkpoints, where the config names none."""
LAST_KILL = 0.8
"""Share of the steps after which no kill is due any more, so that every one meets a run that trains."""
PATIENCE_SECONDS = 300.0
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it restarted ranks may read the addresses of the ones that were killed, and fail to connect: all starts of a
job share torchrun's store, under the same keys (torch 2.13, pytorch/pytorch#135712)."""
RUNS = ("undisturbed", "disturbed")
SHOWN_DIFFERENCES = 20
SHOWN_LINES = 15
screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Kill:
    """When a run is disturbed, and how."""

    after: float
    """Share of the run's steps that a checkpoint must hold by then."""
    wait: float
    """In [0, 1), of the time from one checkpoint to the next: how long after that."""
    rank: int | None
    """Who gets SIGKILL; None: all get SIGTERM."""


def schedule(kills: int, processes: int, seed: int) -> list[Kill]:
    """Kills in the order of the run, drawn by `seed`."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    return [
        Kill(after, draw.random(), None if draw.random() < 0.25 else draw.randrange(processes))
        for after in sorted(draw.uniform(0, LAST_KILL) for _ in range(kills))
    ]


class Job:
    """A run under torchrun, seen from outside. `log` gets the output of its processes; `patience` is in seconds."""

    def __init__(self, command: list[str], run: Path, processes: int, patience: float) -> None:
        self.run, self.log, self.processes, self.patience = run, run.with_suffix(".log"), processes, patience
        with self.log.open("wb") as output:
            # A session of its own: Ctrl-C is for us, and we end the job.
            self.agent = psutil.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **OWN_STORE},
            )
        self.ranks: dict[int, psutil.Process] = {}
        self.restarts = 0

    def look(self) -> None:
        """Find the ranks that torchelastic started last."""
        for process in self.agent.children() if self.agent.is_running() else ():
            try:
                environ = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if "TORCHELASTIC_RESTART_COUNT" not in environ or "RANK" not in environ:
                continue  # forked, and not yet a Python of its own
            restarts = int(environ["TORCHELASTIC_RESTART_COUNT"])
            if restarts > self.restarts:
                self.restarts, self.ranks = restarts, {}
            if restarts == self.restarts:
                self.ranks[int(environ["RANK"])] = process

    def trains(self) -> bool:
        """Whether every rank is inside of `fit`."""
        return len(self.ranks) == self.processes and all(map(_hears_stop_requests, self.ranks.values()))

    def saved(self) -> int:
        """Step of the last checkpoint."""
        return int(_last_checkpoint(self.run).name.partition("_")[2]) if self._checkpoints() else 0

    def saving(self, since: float) -> bool:
        """Whether a checkpoint is being written that was begun after `since` (seconds since 1970)."""
        try:
            return any(path.stat().st_ctime >= since for path in (self.run / "checkpoints").glob("partial_*"))
        except FileNotFoundError:  # just now renamed
            return False

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Return when `condition` holds.

        Raises:
            UserError: the job ended before, or came no further for too long.
        """
        state, since = (0, 0), time.monotonic()
        while True:
            self.look()
            if condition():
                return
            if self.agent.poll() is not None:
                raise UserError(f"{self.run.name}: ended with exit code {self.agent.returncode}, {what}{self._tail()}")
            if (now := (self.restarts, self.saved())) != state:
                state, since = now, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise UserError(
                    f"{self.run.name}: no progress for {self.patience:.0f} s after step {self.saved()}, {what}; lower "
                    f"checkpoint.every_steps, or raise --patience if a start takes that long{self._tail()}"
                )
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """Kill whatever is left of it; the agent is halted first, so that it starts nothing meanwhile."""
        left = list(self.ranks.values())
        if self.agent.poll() is None:
            self.agent.suspend()
            left += [*self.agent.children(recursive=True), self.agent]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def _checkpoints(self) -> bool:
        return any((self.run / "checkpoints").glob("step_*"))

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        return f"; {self.log} ends with:\n" + "\n".join(f"  {line}" for line in lines)


def _hears_stop_requests(process: psutil.Process) -> bool:
    """Whether a process catches SIGTERM: the trainer does, as long as it trains, and nothing else here."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@contextmanager
def started(train: list[str], run: Path, processes: int, restarts: int, patience: float) -> Iterator[Job]:
    """A job that trains into `run`; nothing of it is left afterwards."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    elastic = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "torchrec_xd.cli"]
    job = Job([*torchrun, *elastic, *train, "--run-dir", str(run), "--restartable"], run, processes, patience)
    try:
        yield job
    finally:
        job.end()


def finish(job: Job) -> None:
    """Wait for a good end."""
    job.wait(lambda: job.agent.poll() == 0, "which is a failure of its own: no kill of ours was left")


def undisturbed(job: Job) -> float:
    """Let the job train; returns the seconds between two checkpoints."""
    job.wait(job.trains, "before it trained")
    began = time.monotonic()
    job.wait(lambda: not job.trains(), "while it trained")
    seconds = time.monotonic() - began
    finish(job)
    every = load_config(job.run / "config.yaml").checkpoint.every_steps
    assert every is not None
    return seconds * every / job.saved()


def disturbed(job: Job, kills: list[Kill], steps: int, interval: float) -> None:
    """Kill by schedule, each time waiting until all ranks train again, and let the job come to its end.

    Args:
        job: was just started.
        kills: in order.
        steps: of the whole run.
        interval: seconds between two checkpoints.
    """
    for number, kill in enumerate(kills):
        late = f"after {number} of {len(kills)} kills: raise trainer.epochs, or lower checkpoint.every_steps or --kills"
        screen.print(f"kill {number + 1}/{len(kills)}: {_strike(job, kill, steps, interval, late)}")
    finish(job)


def _strike(job: Job, kill: Kill, steps: int, interval: float, late: str) -> str:
    """Kill once and wait for the restart; returns what was done. `late` is the error if the job ends before."""
    before = job.restarts
    job.wait(job.trains, late)
    since = time.time()
    job.wait(lambda: job.saved() >= kill.after * steps, late)
    time.sleep(kill.wait * interval)
    job.wait(job.trains, late)  # fails if training is over
    where = f"after step {job.saved()} of {steps}" + (", while saving" if job.saving(since) else "")
    for process in job.ranks.values() if kill.rank is None else [job.ranks[kill.rank]]:
        process.send_signal(signal.SIGTERM if kill.rank is None else signal.SIGKILL)
    job.wait(lambda: job.restarts > before, f"without a restart, {late}")
    return f"{'SIGTERM to all ranks' if kill.rank is None else f'SIGKILL to rank {kill.rank}'} {where}"


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, bit by bit; times and speeds aside.

    A line of metrics.jsonl may be there more often than in `one`: a single process that is asked to stop writes one.
    """
    folders = [_last_checkpoint(run) for run in (one, other)]
    found = [f"last checkpoint: {folders[0].name} and {folders[1].name}"] if folders[0].name != folders[1].name else []
    tensors = [_tensors(folder) for folder in folders]
    found += [f"only in one checkpoint: {name}" for name in sorted(tensors[0].keys() ^ tensors[1].keys())]
    for name in sorted(tensors[0].keys() & tensors[1].keys()):
        bits = [value[name].contiguous().reshape(-1).view(torch.uint8) for value in tensors]
        if not torch.equal(*bits):
            found.append(f"tensor {name}")
    results = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) | {"train": None} for run in (one, other)]
    found += [f"metrics.json: {key}" for key in results[0] if results[0][key] != results[1].get(key)]
    there = _lines(other)
    found += [f"metrics.jsonl: {line}" for line in _lines(one) if line not in there]
    return found


def _last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole, by name."""
    index: dict[str, Any] = Reader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.zeros(entry.size, dtype=entry.properties.dtype) for name, entry in index.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant here
        load(tensors, folder, alone=True)
    return tensors


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "rows_per_second"} for line in lines]


def _prepared(config: Path, assign: list[str], out: Path) -> list[str]:
    """The train command of both runs, and an empty place for them."""
    for run in RUNS:
        if (out / run).exists():
            raise UserError(f"--out {out}: there is a run in it already; name another folder")
    assign = ["trainer.threads=1", *assign]
    if load_config(config, assign).checkpoint.every_steps is None:
        assign.append(f"checkpoint.every_steps={EVERY_STEPS}")
    out.mkdir(parents=True, exist_ok=True)
    return ["train", str(config), *(word for assignment in assign for word in ("--set", assignment))]


def _report(config: Path, out: Path, began: float, happened: dict[str, Any]) -> dict[str, Any]:
    """What was done, and whether both runs have the same bits."""
    found = differences(out / "undisturbed", out / "disturbed")
    for line in found[:SHOWN_DIFFERENCES]:
        screen.print(f"differs: {line}", markup=False)
    seconds = round(time.monotonic() - began, 1)
    return {**happened, "bit_equal": not found, "seconds": seconds, "config": str(config)}


def put_to_the_test(
    config: Path, assign: list[str], out: Path, kills: list[Kill], processes: int, patience: float
) -> dict[str, Any]:
    """Train twice into `out`, compare, and return the report.

    Raises:
        UserError: the config is wrong, a run failed by itself or came no further, or the kills do not fit into it.
    """
    began, train = time.monotonic(), _prepared(config, assign, out)
    screen.print(f"{config}: {processes} processes into {out}, undisturbed", markup=False)
    with started(train, out / "undisturbed", processes, 0, patience) as job:
        interval, steps = undisturbed(job), job.saved()
    screen.print(f"{steps} steps, a checkpoint every {interval:.2f} s; now with {len(kills)} kills")
    with started(train, out / "disturbed", processes, len(kills), patience) as job:
        disturbed(job, kills, steps, interval)
        restarts = job.restarts
    return _report(config, out, began, {"kills": len(kills), "restarts": restarts})


def put_apart(
    config: Path, assign: list[str], out: Path, cuts: list[partition.Cut], processes: int, patience: float
) -> dict[str, Any]:
    """Train twice into `out`, on two machines whose wire is cut in the second run; compare, and return the report.

    Raises:
        UserError: there can be no two machines here, or a run did not do what has to follow a cut.
    """
    if lacking := two_machines.missing():
        raise UserError(f"--partition: {lacking}")
    if processes % 2:
        raise UserError(f"--partition --processes {processes}: an even number, half of them on each machine")
    began, train = time.monotonic(), _prepared(config, assign, out)
    screen.print(f"{config}: {processes} processes on two machines into {out}, undisturbed", markup=False)
    with two_machines.two_machines() as machines:
        with partition.started(machines, train, out / "undisturbed", processes, patience) as job:
            job.finish()
            steps = job.saved()
        screen.print(f"{steps} steps; now with {len(cuts)} cuts")
        happened = partition.disturbed(
            lambda: partition.started(machines, train, out / "disturbed", processes, patience), cuts, steps
        )
    return _report(config, out, began, {"cuts": happened})


def chaos(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    kills: Annotated[int, typer.Option(min=1, help="How often the second run is disturbed.")] = 20,
    processes: Annotated[int, typer.Option(min=1, help="Ranks, all on this machine.")] = 2,
    seed: Annotated[int, typer.Option(help="Draws the kills; not the run's.")] = 0,
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=VALUE on top of the config.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for both runs. Default: a temporary one, kept if they differ.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds without a restart or a checkpoint that are a failure.")
    ] = PATIENCE_SECONDS,
    apart: Annotated[
        bool,
        typer.Option(
            "--partition", help="Cut the network between two machines made here (as root), in place of kills."
        ),
    ] = False,
) -> None:
    """Train a config undisturbed and disturbed by kills, and compare what came out bit by bit."""
    folder = out or Path(tempfile.mkdtemp(prefix="chaos-"))
    if apart:
        content = put_apart(config, assign or [], folder, partition.schedule(kills, seed), processes, patience)
    else:
        drawn = schedule(kills, processes, seed)
        content = put_to_the_test(config, assign or [], folder, drawn, processes, patience)
    text = json.dumps(content, indent=1)
    if report is not None:
        report.write_text(text + "\n", encoding="utf-8")
    screen.print(text, markup=False)
    if out is None and content["bit_equal"]:
        shutil.rmtree(folder)
    raise typer.Exit(0 if content["bit_equal"] else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that jobs are ended on the way out
    run_command(lambda: typer.run(chaos))
