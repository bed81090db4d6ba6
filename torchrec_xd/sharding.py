"""Sharded tables and the optimizers of a model: the only file that drives torchrec's distributed runtime."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.distributed.optim import (  # type: ignore[attr-defined]
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import (
    CommOp,
    ModuleSharder,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_xd.cpu_lookup import MOST_GROUPS, deal_tables, look_up_as_bags, look_up_side_by_side
from torchrec_xd.embeddings import Initialiser, table_initialisers, table_parameters
from torchrec_xd.models.task import TrainTask
from torchrec_xd.settings import Settings, UserError
from torchrec_xd.world import World

if TYPE_CHECKING:
    from torchrec_xd.planner import CommunicationSettings


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


class BagSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise on every device: torchrec's own list leaves it out on CPU, where it runs all the same."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Sharding types for a device."""
        types: list[str] = super().sharding_types(compute_device_type)
        row_wise: str = ShardingType.ROW_WISE.value
        return types if row_wise in types else [*types, row_wise]


class SequenceSharder(EmbeddingCollectionSharder):
    """Offers what trains sequences right: torchrec 1.8 fails on replicated tables that several features share."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Sharding types for a device."""
        return [
            kind for kind in super().sharding_types(compute_device_type) if kind != ShardingType.DATA_PARALLEL.value
        ]


def sharders(communication: CommunicationSettings | None = None) -> list[ModuleSharder[nn.Module]]:
    """What may be sharded: a collection without a sharder would stay whole on every rank, without a word.

    Ranks exchange embeddings and gradients in fp32 unless `communication` tells otherwise.
    """
    codecs = None if communication is None else _codecs(communication)
    return [BagSharder(qcomm_codecs_registry=codecs), SequenceSharder(qcomm_codecs_registry=codecs)]


def _codecs(communication: CommunicationSettings) -> dict[str, QuantizedCommCodecs] | None:
    """Not by torchrec's own function, which on CPU takes fp16 where bf16 was asked for: gloo carries both."""
    if communication.forward == communication.backward == "fp32":
        return None
    precisions = CommType(communication.forward), CommType(communication.backward)
    exchanges = (
        CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
        CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
        CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
    )
    return {exchange.name: get_qcomm_codecs(QCommsConfig(*precisions)) for exchange in exchanges}


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
    task: TrainTask,
    plan: ShardingPlan,
    optimizers: OptimizerSettings,
    world: World,
    communication: CommunicationSettings | None = None,
) -> tuple[DistributedModelParallel, Optimizers]:
    """Shard and initialise the tables, whose optimizers are fused already, and give the dense rest its own.

    The dense parameters must be equal on all ranks already in kind and shape; rank 0's values are broadcast.

    Raises:
        UserError: tables that the plan replicates (data_parallel) and that have no optimizer for that.
    """
    tables = table_initialisers(task)
    threads = min(world.least(torch.get_num_threads()), MOST_GROUPS) if world.device.type == "cpu" else 1
    if threads > 1:
        deal_tables(task, threads)
    model = DistributedModelParallel(
        task,
        env=ShardingEnv.from_process_group(world.group),
        device=world.device,
        plan=plan,
        sharders=sharders(communication),
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
        init_data_parallel=False,
    )
    for name, parameter in model.named_parameters():
        if name.startswith("teacher.") and parameter.is_leaf:
            parameter.requires_grad_(False)  # a replicated table would otherwise wait for a gradient
    if world.device.type == "cpu":
        look_up_as_bags(model)
    if threads > 1:
        look_up_side_by_side(model, threads)
    _fill_shards(model, tables)
    if world.size > 1:
        model.init_data_parallel()  # a single process has nobody to average with, and would copy all gradients
    unfused = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
    dense = {name: parameter for name, parameter in unfused.items() if name not in tables}
    replicated = {name: parameter for name, parameter in unfused.items() if name in tables}
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
    running = RunningStatistics([buffer for buffer in task.net.buffers() if buffer.is_floating_point()], world)
    return model, Optimizers(
        model.fused_optimizer, _replicated_optimizer(replicated, optimizers.tables), adam, optimizers, running
    )


def table_bytes(model: nn.Module, optimizers: Optimizers) -> int:
    """Bytes of weights and optimizer state of the table shards that lie on this rank, of a model from `shard`."""
    assert isinstance(model, DistributedModelParallel)
    collections = tuple(f"{path}." for path in model.plan.plan)
    held = {name: [value] for name, value in model.state_dict().items() if name.startswith(collections)}
    for key, state in optimizers.state.state_dict()["state"].items():
        _, _, name = key.partition(".")  # in front stands which optimizer it is
        if name in held:
            held[name].extend(state.values())
    pieces = [piece for values in held.values() for value in values for piece in _local(value)]
    return sum(piece.numel() * piece.element_size() for piece in pieces)


def _local(held: Any) -> list[torch.Tensor]:
    """What of a tensor, sharded or not, lies on this rank."""
    if hasattr(held, "local_shards"):
        return [shard.tensor for shard in held.local_shards()]
    return [held] if isinstance(held, torch.Tensor) else []


def _fill_shards(model: nn.Module, tables: dict[str, Initialiser]) -> None:
    """First weights that do not depend on the plan: torchrec fills every shard as if it were a table of its own."""
    for name, value in model.state_dict().items():
        if name in tables and hasattr(value, "local_shards"):
            rows, dim = value.metadata().size  # its own size() warns that sharded tensors are going away
            for piece in value.local_shards():
                row, column = piece.metadata.shard_offsets
                if tuple(piece.metadata.shard_sizes) != (rows, dim):
                    tables[name].fill(piece.tensor, row, column, dim)


class RunningStatistics:
    """What a net counts on its own rank's batches (for normalisation), kept equal on all: no gradient moves it."""

    def __init__(self, buffers: list[torch.Tensor], world: World) -> None:
        self.buffers, self.world = buffers if world.size > 1 else [], world

    def average(self) -> None:
        """Give every rank the mean over ranks (a collective)."""
        if self.buffers:
            together = torch.cat([buffer.flatten() for buffer in self.buffers])
            torch.distributed.all_reduce(together, group=self.world.group)
            parts = torch.split_with_sizes(together / self.world.size, [buffer.numel() for buffer in self.buffers])
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

    def begin(self, step: int, total_steps: int) -> None:
        """Set the learning rates of `step` and forget the gradients; before the forward pass."""
        factor = self._settings.schedule.factor(step, total_steps)
        rates = [(optimizer, self._settings.tables.lr) for optimizer in self._tables]
        for optimizer, lr in [*rates, (self._dense, self._settings.dense.lr)]:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        self.state.zero_grad(set_to_none=True)  # the fused optimizer reads its rate here

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


def _replicated_optimizer(
    tables: dict[str, nn.Parameter], settings: TableOptimizerSettings
) -> KeyedOptimizerWrapper | None:
    """The optimizer of tables that every rank holds whole: their gradients are dense, and no kernel applies them.

    A row that a batch did not look up has a gradient of zero, which moves nothing but under Adam.
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
    kind, kwargs = _table_optimizer(settings)
    return KeyedOptimizerWrapper(tables, lambda parameters: kind(parameters, **kwargs))


def _table_optimizer(settings: TableOptimizerSettings) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "rowwise_adagrad": RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    eps = {} if settings.name == "sgd" else {"eps": settings.eps}
    return kinds[settings.name], {"lr": settings.lr, **eps}
