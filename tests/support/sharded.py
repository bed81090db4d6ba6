"""A task on the ranks of a test, as a run would place it."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.distributed as dist

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.distributed.optimizers import OptimizerSettings, fuse_optimizers
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.distributed.sharding import shard
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models.mkt import PretrainSettings, build_pretrain
from torchrec_xd.planner import ShardingSettings, plan_run, this_machine
from torchrec_xd.schema import Schema


def processes_of(rank: int) -> Processes:
    size = dist.get_world_size()
    return Processes(rank, size, size, torch.device("cpu"), dist.group.WORLD, torch.get_num_threads())


def sharded(task, optimizers, processes, settings=ShardingSettings(), batch_size=64):  # noqa: B008 - frozen
    fuse_optimizers(task, optimizers.tables)
    plan = None
    if processes.is_main_process:
        cluster = this_machine("cpu", processes.size, processes.size)
        plan = plan_run(task, sharders(settings.communication), cluster, settings, batch_size, {}).sharding_plan
    return shard(task, processes.broadcast_object(plan), optimizers, processes, settings.communication)


@contextmanager
def sharded_pretrain(folder):
    """A small first stage of MKT in one process: model, optimizers (with state), schema and processes."""
    schema = Schema.model_validate(schema_at(write_feed(folder, rows=64)))
    settings = PretrainSettings(expert_widths=(8, 6), aligned_dim=4, tower_widths=(4,))
    with process_group() as processes:
        task = build_pretrain(schema, settings, EmbeddingSettings(dtype="fp16"), 0)
        model, optimizers = sharded(task, OptimizerSettings(), processes)
        optimizers.init_state()
        yield model, optimizers, schema, processes
