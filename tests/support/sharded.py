"""A task on the ranks of a test, as a run would place it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from torchrec_xd.distributed.optimizers import fuse_optimizers
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.distributed.sharding import shard
from torchrec_xd.planner import ShardingSettings, plan_run, this_machine


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
