"""Sharded tables and the optimizers of a model: the only file that drives torchrec's distributed runtime."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.distributed.optim import (  # type: ignore[attr-defined]
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_xd.embeddings import table_parameters
from torchrec_xd.models.task import TrainTask
from torchrec_xd.settings import Settings
from torchrec_xd.world import World


class TableOptimizerSettings(Settings):
    """The optimizer fused into the backward pass of every table."""

    name: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    lr: PositiveFloat = 0.02
    eps: PositiveFloat = 1e-8
    """Added to the denominator; not used by sgd."""


class DenseOptimizerSettings(Settings):
    """Adam on everything that is no table."""

    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (AdamW)."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of all dense gradients together; tables update inside the backward pass and are not clipped."""


class ScheduleSettings(Settings):
    """Factor on both learning rates, by step."""

    warmup_steps: NonNegativeInt = 0
    """Steps of linear rise from 0 to 1."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the factor falls from 1 to `final` between the warm-up and the last step."""
    final: float = Field(default=0.0, ge=0, le=1)

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


def sharders() -> list[ModuleSharder[nn.Module]]:
    """What may be sharded: a collection without a sharder would stay whole on every rank, without a word."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]


def fuse_optimizers(task: TrainTask, settings: TableOptimizerSettings) -> None:
    """Give every table the optimizer that its backward pass will apply; before planning, which counts its state."""
    kind, kwargs = _table_optimizer(settings)
    apply_optimizer_in_backward(kind, table_parameters(task.embeddings), kwargs)
    if task.teacher is not None:
        # Frozen tables get an optimizer without state and with a rate of zero: nothing to keep, nothing to apply. It
        # attaches to what wants a gradient; none will come, as the teacher runs under no_grad.
        frozen = [table.requires_grad_() for table in table_parameters(task.teacher)]
        apply_optimizer_in_backward(torch.optim.SGD, frozen, {"lr": 0.0})


def shard(
    task: TrainTask, plan: ShardingPlan, optimizers: OptimizerSettings, world: World
) -> tuple[DistributedModelParallel, Optimizers]:
    """Shard and initialise the tables, whose optimizers are fused already, and give the dense rest its own.

    The dense parameters must be equal on all ranks already in kind and shape; rank 0's values are broadcast.
    """
    model = DistributedModelParallel(
        task,
        env=ShardingEnv.from_process_group(world.group),
        device=world.device,
        plan=plan,
        sharders=sharders(),
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
    )
    dense = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
    settings = optimizers.dense
    adam = KeyedOptimizerWrapper(
        dense,
        lambda params: torch.optim.AdamW(
            params,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        ),
    )
    return model, Optimizers(model.fused_optimizer, adam, optimizers)


class Optimizers:
    """The tables' fused optimizer and the dense one, moved together.

    `state` is both as one keyed optimizer, for checkpoints.
    """

    def __init__(self, tables: KeyedOptimizer, dense: KeyedOptimizerWrapper, settings: OptimizerSettings) -> None:
        self.state = CombinedOptimizer([("tables", tables), ("dense", dense)])
        self._tables, self._dense, self._settings = tables, dense, settings

    def begin(self, step: int, total_steps: int) -> None:
        """Set the learning rates of `step` and forget the gradients; before the forward pass."""
        factor = self._settings.schedule.factor(step, total_steps)
        for optimizer, lr in ((self._tables, self._settings.tables.lr), (self._dense, self._settings.dense.lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        self.state.zero_grad(set_to_none=True)  # the fused optimizer reads its rate here

    def step(self) -> None:
        """Move the dense weights; the tables moved in the backward pass."""
        clip = self._settings.dense.clip_norm
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self._dense.params.values(), clip)
        self.state.step()

    def init_state(self) -> None:
        """Give the dense optimizer the state that it has from its first step on, so that one can be loaded."""
        self._dense.init_state()


def _table_optimizer(settings: TableOptimizerSettings) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "rowwise_adagrad": RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    eps = {} if settings.name == "sgd" else {"eps": settings.eps}
    return kinds[settings.name], {"lr": settings.lr, **eps}
