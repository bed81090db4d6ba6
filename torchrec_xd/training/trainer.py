"""The loop that moves the weights, and the one that measures them."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.loader import Loader
from torchrec_xd.distributed.pipeline import pipelined_steps
from torchrec_xd.distributed.precision import fast_bf16
from torchrec_xd.distributed.process_group import Processes, ProcessSettings
from torchrec_xd.errors import InterruptedRunError, UserError
from torchrec_xd.log import VALID, RunLog
from torchrec_xd.outputs import Output
from torchrec_xd.settings import LocalPath

if TYPE_CHECKING:
    from torchrec_xd.checkpoint import Checkpoints, Scores
    from torchrec_xd.distributed.optimizers import Optimizers


class TrainerSettings(ProcessSettings):
    """How long and how training runs."""

    epochs: PositiveInt = 1
    """Passes over the training rows."""
    patience: PositiveInt | None = None
    """Stop early: after so many epochs in a row without a better validation score (`monitor`) than before; `epochs` is
    then the most there are, and what learning rates are scheduled for. Default: train all epochs. Either way the best
    checkpoint stays, is what is measured in the end, and what `score` and a second stage take."""
    log_every: PositiveInt = 20
    """Steps between two lines of metrics.jsonl; the loss is read, and signals are checked, then and at checkpoints."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: the dense part runs under autocast; weights, tables and losses stay fp32. auto: bf16 where the device has
    hardware for it, else fp32."""
    weighted: bool | None = None
    """Whether the loss honours the schema's row weights, as metrics always do. Default: true where the schema has a
    `weight`, so that scores are probabilities where rows come as they come in nature. Each domain's weights are divided
    by their mean: a domain weighs what its rows weigh. false: scores are those of the sampled rows, and a warning says
    so."""
    pipeline: bool | None = None
    """Copy and distribute the next batches while one is computed; the numbers stay the same. Default: true on a GPU."""
    compile: bool | Literal["auto"] = False
    """Whether training runs the dense net through torch.compile: some 25 % fewer kernels, the same results up to
    rounding (dropout draws other numbers), for a first step of a minute and more, or some 10 s where the kernels were
    kept. On CPU it pays with small batches (of some 256 rows) and not with large ones; on a GPU it was not tried yet.
    Tables, the loss and evaluation are not compiled. Needs a C++ compiler on CPU, Triton on GPUs. auto: compiles where
    these are there, else trains without and says so."""
    compile_cache: LocalPath | None = None
    """Folder where compiled kernels are kept for later runs, of one machine or of equal ones; whoever writes there
    decides what they run. May change on resume. Default: torch's, in the system's temporary folder."""


@dataclass(frozen=True)
class Summary:
    """What training did in this process group, since it last started."""

    steps: int
    rows: int
    seconds: float
    step_seconds: float | None
    """Of one step on this rank: the median over the intervals between log steps; None where nothing was left to do."""

    @property
    def rows_per_second(self) -> float | None:
        """Over all ranks; None where nothing was left to do."""
        return self.rows / self.seconds if self.rows else None


@dataclass(frozen=True)
class Training:
    """A model and what moves it."""

    model: nn.Module
    optimizers: Optimizers
    settings: TrainerSettings
    processes: Processes

    @cached_property
    def bf16(self) -> bool:
        """Whether the dense part runs in bf16."""
        precision = self.settings.precision
        return precision == "bf16" or (precision == "auto" and fast_bf16(self.processes.device))

    @property
    def pipelined(self) -> bool:
        """Whether batches are read ahead by torchrec's pipeline."""
        chosen = self.settings.pipeline
        return self.processes.device.type == "cuda" if chosen is None else chosen

    @property
    def how(self) -> str:
        """How a GPU trains, for the log; empty on CPU."""
        if self.processes.device.type != "cuda":
            return ""
        products = "in bf16" if self.bf16 else "in TF32" if self.settings.tf32 else "in fp32"
        ahead = "" if self.pipelined else "not "
        repeats = "deterministic algorithms" if self.settings.deterministic else "no deterministic algorithms"
        name = torch.cuda.get_device_name(self.processes.device)
        return f"{self.processes.size} x {name}: matrix products {products}, batches {ahead}read ahead, {repeats}"


class Step(NamedTuple):
    """What one step of training computed."""

    batch: Batch
    """On the device."""
    loss: Tensor
    output: Output


def fit(
    training: Training,
    loader: Loader,
    log: RunLog,
    checkpoints: Checkpoints,
    validate: Callable[[], float | None],
    *,
    start: LoaderState,
    step: int = 0,
    scores: Scores,
    validated: bool = True,
) -> Summary:
    """Train from `start` to the last epoch, or until patience ends: `scores` says what validation said before.

    Every epoch ends with a checkpoint, then with a call of `validate` (larger is better); not `validated`: the run
    ended in between. Steps are counted on from `step`; where epochs changed, `start` alone says how much is left.

    Raises:
        UserError: the loss or a weight is not finite; the last checkpoint stays.
        InterruptedRunError: SIGINT or SIGTERM was received; a checkpoint has been written.
    """
    settings, processes = training.settings, training.processes
    planned = settings.epochs * loader.steps
    first, total = step, step + planned - _position(start, loader)
    if not validated:
        scores = _validated(training, validate, log, checkpoints, step, scores)
    if _out_of_patience(scores, settings, log, step, total):
        return Summary(0, 0, 0.0, None)
    rows, since, began = 0, Stopwatch(first), time.perf_counter()
    training.model.train()
    batches = loader.batches(start, settings.epochs, pin=processes.device.type == "cuda")
    steps = train_steps(training, batches, _position(start, loader), planned)
    with _stop_requests() as stop, closing(batches), closing(steps), log.progress(total, step) as progress:
        stopping = False
        for batch, loss, output in steps:
            step += 1
            rows += len(batch) * processes.size
            epoch_ends = batch.position.step == loader.steps
            saves = epoch_ends or step % (checkpoints.settings.every_steps or total + 1) == 0
            logs = step % settings.log_every == 0 or saves
            if logs or (processes.size == 1 and stop):  # nothing infinite is ever saved
                values = _losses(loss, output)
                if processes.any(not math.isfinite(values["loss"])):
                    raise UserError(_divergence(values["loss"], step, batch, loader))
                stopping = processes.any(bool(stop))
            if logs:
                speed = since.lap(rows, step)
                log.metrics(step, {**values, "epoch": batch.position.epoch, "rows_per_second": speed})
                progress.update(step, f"loss {values['loss']:.4f}  {speed:,.0f} rows/s")
            if saves or stopping:
                with since.stopped():
                    state = training.model, training.optimizers, batch.position, step
                    checkpoints.save(*state, None, loader.steps, scores, validated=not epoch_ends)
                    if epoch_ends and not stopping:  # who asks to stop may give seconds only
                        scores = _validated(training, validate, log, checkpoints, step, scores)
            if stopping:
                raise _stopped(step, total)
            if epoch_ends and _out_of_patience(scores, settings, log, step, total):
                break
    return Summary(step - first, rows, time.perf_counter() - began, since.median())


def _validated(
    training: Training,
    validate: Callable[[], float | None],
    log: RunLog,
    checkpoints: Checkpoints,
    step: int,
    scores: Scores,
) -> Scores:
    """With the score of the epoch that ends, which is noted in its checkpoint."""
    score = validate()
    training.model.train()
    if score is not None:
        log.metrics(step, {VALID: score})
    scores = scores.after(score)
    checkpoints.score(step, score, scores)
    return scores


def _stopped(step: int, total: int) -> InterruptedRunError:
    return InterruptedRunError(f"stopped after step {step} of {total}; a checkpoint was written; go on with --resume")


def _out_of_patience(scores: Scores, settings: TrainerSettings, log: RunLog, step: int, total: int) -> bool:
    """Whether training ends early; then the log says why."""
    ends = scores.exhaust(settings.patience)
    if ends:
        best = "no score at all" if scores.best is None else f"no better score than {scores.best:.4f}"
        log.say(f"{best} in {scores.waited} epochs (trainer.patience): training ends after step {step} of {total}")
    return ends


def _position(state: LoaderState, loader: Loader) -> int:
    """Steps of the present epochs that lie before a position of the loader."""
    return state.epoch * loader.steps + state.step


def train_steps(training: Training, batches: Iterator[Batch], done: int, planned: int) -> Generator[Step, None, None]:
    """Train on batch after batch.

    Args:
        training: what is trained.
        batches: of one or more epochs. The pipeline is empty between two of them, so that others may call the model.
        done: steps of the schedule that lie before the first batch.
        planned: steps of the whole schedule.
    """
    for _, epoch in groupby(batches, key=lambda batch: batch.position.epoch):
        with closing(_steps_of(training, epoch)) as steps:
            while True:
                training.optimizers.set_lr(done, planned)
                step = next(steps, None)
                if step is None:
                    break
                done += 1
                yield step


def _steps_of(training: Training, batches: Iterator[Batch]) -> Generator[Step, None, None]:
    """A step for each batch; the learning rates must have been set before it is asked for."""
    if not training.pipelined:
        return (train_step(training, batch) for batch in batches)

    def loss_and_step(batch: Batch) -> tuple[Tensor, Step]:
        step = forward(training, batch)
        return step.loss, step

    return pipelined_steps(training.model, training.optimizers, training.processes.device, loss_and_step, batches)


def train_step(training: Training, batch: Batch) -> Step:
    """Forward, backward (tables move there) and the dense step; the learning rates must have been set before."""
    training.optimizers.zero_grad()
    step = forward(training, batch.to(training.processes.device, non_blocking=True))
    step.loss.backward()  # type: ignore[no-untyped-call]
    training.optimizers.step()
    return step


def forward(training: Training, batch: Batch) -> Step:
    """Outputs and loss of a batch that lies on the device."""
    unweighted = training.settings.weighted is False
    read = replace(batch, weight_B=torch.ones_like(batch.weight_B)) if unweighted else batch
    with torch.autocast(training.processes.device.type, torch.bfloat16, enabled=training.bf16):
        output: Output = training.model(read)
        loss = output.total_loss()
    return Step(batch, loss, output)


def _losses(loss: Tensor, output: Output) -> dict[str, float]:
    """The loss, its parts and the monitors as numbers: the one place of the loop that waits for the device."""
    parts = {**output.loss, **output.monitors}
    numbers = torch.stack([loss.detach(), *(part.detach() for part in parts.values())]).float().tolist()
    return dict(zip(["loss", *parts], numbers, strict=True))


def _divergence(loss: float, step: int, batch: Batch, loader: Loader) -> str:
    whose = "the loss" if not math.isfinite(loss) else "the loss of another process"
    sources = "\n".join(f"  {source}" for source in loader.sources(batch.position))
    return (
        f"{whose} became {loss if not math.isfinite(loss) else 'NaN or infinite'} at or before step {step} (epoch "
        f"{batch.position.epoch}, batch {batch.position.step}); all processes stop, the last checkpoint stays. Lower "
        "optimizer.dense.lr or optimizer.tables.lr, set optimizer.dense.clip_norm, or look at the data: this process's "
        f"rows of that batch lie among\n{sources}"
    )


@torch.no_grad()
def predict(model: nn.Module, loader: Loader, processes: Processes) -> Iterator[tuple[Batch, Output]]:
    """Every batch of a split that holds rows, with the model's output for it, in evaluation mode and full precision.

    The batch is on the CPU, as it was read, and the output on the device.
    """
    model.eval()
    with closing(loader.batches(pin=processes.device.type == "cuda")) as batches:
        for read in batches:
            batch = read.to(processes.device, non_blocking=True)
            if len(batch):
                yield read, model(batch, with_loss=False)
            else:
                model(batch.padding(), with_loss=False)  # a rank without rows still answers what the others look up


class Stopwatch:
    """Rows per second since the last lap, and seconds per step of every lap."""

    def __init__(self, step: int) -> None:
        self.rows, self.step, self.time = 0, step, time.perf_counter()
        self.laps: list[float] = []

    def lap(self, rows: int, step: int) -> float:
        """Begin the next lap at `rows` and `step`, and return the rows per second of the one that ends."""
        now = time.perf_counter()
        took = now - self.time
        self.laps.append(took / (step - self.step))
        speed = (rows - self.rows) / took
        self.rows, self.step, self.time = rows, step, now
        return speed

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        began = time.perf_counter()
        yield
        self.time += time.perf_counter() - began

    def median(self) -> float | None:
        """Seconds of a step, over the laps."""
        return statistics.median(self.laps) if self.laps else None


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals that ask to stop, collected instead of acted on; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
