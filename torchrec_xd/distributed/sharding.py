"""Sharded tables: the only file that drives torchrec's distributed runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_xd.distributed.cpu_lookup import (
    MOST_GROUPS,
    allow_empty_shards,
    assign_lookup_groups,
    look_up_as_bags,
    look_up_side_by_side,
)
from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.distributed.optimizers import (
    Optimizers,
    OptimizerSettings,
    RunningStatistics,
    dense_optimizer,
    replicated_optimizer,
)
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.embeddings import Initialiser, table_initialisers
from torchrec_xd.models.model import Model


def shard(
    built: Model,
    plan: ShardingPlan,
    optimizers: OptimizerSettings,
    processes: Processes,
    communication: CommunicationSettings | None = None,
) -> tuple[DistributedModelParallel, Optimizers]:
    """Shard and initialise the tables, whose optimizers are fused already, and give the dense rest its own.

    The dense parameters must be equal on all ranks already in kind and shape; rank 0's values are broadcast.

    Raises:
        UserError: tables that the plan replicates (data_parallel) and that have no optimizer for that.
    """
    if processes.size > 1:
        built.mean_over_ranks = processes.mean
    tables = table_initialisers(built)
    threads = min(processes.all_reduce_min(processes.threads), MOST_GROUPS) if processes.device.type == "cpu" else 1
    if threads > 1:
        assign_lookup_groups(built, threads)
    model = DistributedModelParallel(
        built,
        env=ShardingEnv.from_process_group(processes.group),
        device=processes.device,
        plan=plan,
        sharders=sharders(communication),
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
        init_data_parallel=False,
    )
    for name, parameter in model.named_parameters():
        if name.startswith("teacher.") and parameter.is_leaf:
            parameter.requires_grad_(False)  # a replicated table would otherwise wait for a gradient
    if processes.device.type == "cpu":
        look_up_as_bags(model)
        allow_empty_shards(model)
    if threads > 1:
        look_up_side_by_side(model, threads)
    _fill_shards(model, tables)
    if processes.size > 1:
        model.init_data_parallel()  # moves the dense part to the device, and wraps it in DDP
    else:
        model.module.to(processes.device)  # DDP is unnecessary for one process, and would copy all gradients
    unfused = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
    dense = {name: parameter for name, parameter in unfused.items() if name not in tables}
    replicated = {name: parameter for name, parameter in unfused.items() if name in tables}
    running = RunningStatistics([buffer for buffer in built.net.buffers() if buffer.is_floating_point()], processes)
    return model, Optimizers(
        model.fused_optimizer,
        replicated_optimizer(replicated, optimizers.tables),
        dense_optimizer(dense, optimizers.dense),
        optimizers,
        running,
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
    pieces = [piece for values in held.values() for value in values for piece in local_pieces(value)]
    return sum(piece.numel() * piece.element_size() for piece in pieces)


def local_pieces(held: Any) -> list[torch.Tensor]:
    """What of a tensor, sharded or not, lies on this rank."""
    if hasattr(held, "local_shards"):
        return [shard.tensor for shard in held.local_shards()]
    return [held] if isinstance(held, torch.Tensor) else []


def _fill_shards(model: nn.Module, tables: dict[str, Initialiser]) -> None:
    """First weights that do not depend on the plan: torchrec initialises every shard as if it were a whole table."""
    for name, value in model.state_dict().items():
        if name in tables and hasattr(value, "local_shards"):
            rows, dim = value.metadata().size  # its own size() warns that sharded tensors are going away
            for piece in value.local_shards():
                row, column = piece.metadata.shard_offsets
                if tuple(piece.metadata.shard_sizes) != (rows, dim):
                    tables[name].fill(piece.tensor, row, column, dim)
