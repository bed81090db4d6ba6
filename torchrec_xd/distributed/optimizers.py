"""The optimizers of a run: fused into the backward pass of every table, and Adam for the dense rest."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import nn
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.embeddings import table_parameters
from torchrec_xd.errors import UserError
from torchrec_xd.models.model import Model
from torchrec_xd.private_names import announce_optimizer as announce
from torchrec_xd.private_names import apply_optimizer_in_backward
from torchrec_xd.settings import MAX_FP32, Settings
from torchrec_xd.table_types import CPU_TABLE_OPTIMIZERS, TableOptimizer

TABLE_OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
"""All optimizers that tables may have."""
Rate = Annotated[float, Field(gt=0, le=MAX_FP32)]
"""A positive number that fp32 holds."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of a moment that a step keeps."""


class TableOptimizerSettings(Settings):
    """The optimizer fused into the backward pass of every table."""

    name: TableOptimizer = "rowwise_adagrad"
    """The optimizer."""
    lr: Rate = 0.02
    """Learning rate, before the schedule's factor."""
    eps: Rate = 1e-8
    """Added to the denominator; not used by sgd."""
    stochastic_rounding: bool | None = None
    """For fp16 tables: round an updated weight up or down at random, by how near it lies, so that small updates count
    on average. Default: true on GPUs. FBGEMM's CPU kernels round to the nearest value and lose updates below 1/4096 of
    a weight: with sgd and a small rate most of them. Train fp32 tables there, or with rowwise_adagrad."""

    def optimizer_arguments(self) -> dict[str, Any]:
        """What the optimizer's constructor takes."""
        return {"lr": self.lr} if self.name == "sgd" else {"lr": self.lr, "eps": self.eps}


class DenseOptimizerSettings(Settings):
    """Adam on everything that is no table."""

    lr: Rate = 1e-3
    """Learning rate, before the schedule's factor."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates of the first and second moments."""
    eps: Rate = 1e-8
    """Added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0, le=MAX_FP32)
    """Decoupled (AdamW)."""
    clip_norm: Rate | None = None
    """Largest norm of all dense gradients together; tables update inside the backward pass and are not clipped."""


class ScheduleSettings(Settings):
    """Factor on both learning rates, by step."""

    warmup_steps: NonNegativeInt = 0
    """Steps of linear rise from 0 to 1."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the factor falls from 1 to `final` between the warm-up and the last step."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The factor at the last step, with linear or cosine decay."""

    def factor(self, step: int, total_steps: int) -> float:
        """The factor at `step` (the first one is 0) of `total_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final + (1 - self.final) * left


class OptimizerSettings(Settings):
    """Both optimizers and their schedule."""

    tables: TableOptimizerSettings = TableOptimizerSettings()
    dense: DenseOptimizerSettings = DenseOptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()


def check_device(settings: TableOptimizerSettings, device: torch.device) -> None:
    """Check that FBGEMM has the optimizer for a device.

    Raises:
        UserError: it has not.
    """
    if device.type != "cpu":
        return
    if settings.name not in CPU_TABLE_OPTIMIZERS:
        raise UserError(
            f"optimizer.tables.name={settings.name}: FBGEMM has it on GPUs only; on CPU take one of: "
            f"{', '.join(CPU_TABLE_OPTIMIZERS)}"
        )
    if settings.stochastic_rounding:
        raise UserError(
            "optimizer.tables.stochastic_rounding=true: FBGEMM has it on GPUs only; leave it out; on CPU train fp32 "
            "tables (embeddings.dtype=fp32)"
        )


def fuse_optimizers(model: Model, settings: TableOptimizerSettings) -> None:
    """Give every table the optimizer that its backward pass will apply; before planning, which counts its state."""
    arguments = settings.optimizer_arguments()
    if settings.stochastic_rounding is not None:
        arguments["stochastic_rounding"] = settings.stochastic_rounding
    apply_optimizer_in_backward(TABLE_OPTIMIZERS[settings.name], table_parameters(model.embeddings), arguments)
    if model.teacher is not None:
        # Frozen tables get an optimizer without state and with a rate of zero: nothing to keep, nothing to apply. It
        # attaches to what wants a gradient; none will come, as the teacher runs under no_grad.
        frozen = list(table_parameters(model.teacher))
        for table in frozen:
            table.requires_grad_()
        apply_optimizer_in_backward(torch.optim.SGD, frozen, {"lr": 0.0})


def announce_optimizer(module: nn.Module, name: TableOptimizer) -> None:
    """Let the planner count the state of an optimizer for all parameters of a module that is planned, not trained."""
    announce(module.parameters(), TABLE_OPTIMIZERS[name])


def dense_optimizer(parameters: dict[str, nn.Parameter], settings: DenseOptimizerSettings) -> KeyedOptimizerWrapper:
    """AdamW for everything that is no table."""
    return KeyedOptimizerWrapper(
        parameters,
        lambda params: torch.optim.AdamW(
            params,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        ),
    )


class RunningStatistics:
    """What a net counts on its own rank's batches (for normalisation), kept equal on all: no gradient moves it."""

    def __init__(self, buffers: list[torch.Tensor], processes: Processes) -> None:
        self.buffers, self.processes = buffers if processes.size > 1 else [], processes

    def average(self) -> None:
        """Give every rank the mean over ranks (a collective)."""
        if self.buffers:
            together = torch.cat([buffer.flatten() for buffer in self.buffers])
            torch.distributed.all_reduce(together, group=self.processes.group)
            parts = torch.split_with_sizes(together / self.processes.size, [buffer.numel() for buffer in self.buffers])
            for buffer, part in zip(self.buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


class Optimizers:
    """The tables' fused optimizer, its twin for replicated tables, and the dense one, moved together.

    `state` is all of them as one keyed optimizer, for checkpoints.
    """

    def __init__(
        self,
        fused: KeyedOptimizer,
        replicated: KeyedOptimizerWrapper | None,
        dense: KeyedOptimizerWrapper,
        settings: OptimizerSettings,
        running: RunningStatistics,
    ) -> None:
        tables = [fused] if replicated is None else [fused, replicated]
        self.state = CombinedOptimizer([("tables", optimizer) for optimizer in tables] + [("dense", dense)])
        self._tables, self._dense, self._settings, self._running = tables, dense, settings, running

    def set_lr(self, step: int, total_steps: int) -> None:
        """Set the learning rates of `step`; before the forward pass, as fused optimizers move in the backward pass."""
        factor = self._settings.schedule.factor(step, total_steps)
        rates = [(optimizer, self._settings.tables.lr) for optimizer in self._tables]
        for optimizer, lr in [*rates, (self._dense, self._settings.dense.lr)]:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor

    def zero_grad(self) -> None:
        """Drop the gradients; after `set_lr`, as the fused optimizer reads its learning rate here."""
        self.state.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the dense weights and replicated tables; the others moved in the backward pass."""
        clip = self._settings.dense.clip_norm
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self._dense.params.values(), clip)
        self.state.step()
        self._running.average()

    def init_state(self) -> None:
        """Give the dense optimizer the state that it has from its first step on, so that one can be loaded."""
        self._dense.init_state()


def replicated_optimizer(
    tables: dict[str, nn.Parameter], settings: TableOptimizerSettings
) -> KeyedOptimizerWrapper | None:
    """The optimizer of tables that every rank holds whole: their gradients are dense, and no kernel applies them.

    A row that a batch did not look up has a gradient of zero, which moves nothing but under Adam.

    Raises:
        UserError: replicated tables would train unlike sharded ones.
    """
    if not tables:
        return None
    halves = [name for name, table in tables.items() if table.dtype != torch.float32]
    if settings.name == "adam" or halves:
        why = (
            "optimizer.tables.name=adam moves rows without a gradient too" if not halves else "embeddings.dtype is fp16"
        )
        raise UserError(
            f"data_parallel tables train unlike sharded ones where {why} ({', '.join(halves or tables)}): take "
            "data_parallel out of sharding.types, or use fp32 tables and another table optimizer"
        )
    return KeyedOptimizerWrapper(
        tables, lambda parameters: TABLE_OPTIMIZERS[settings.name](parameters, **settings.optimizer_arguments())
    )
