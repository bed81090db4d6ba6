"""A task on the ranks of a test, as a run would place it."""

from __future__ import annotations

import torch
import torch.distributed as dist

from torchrec_xd.planner import ShardingSettings, plan_run, this_machine
from torchrec_xd.sharding import fuse_optimizers, shard, sharders
from torchrec_xd.world import World


def world_of(rank: int) -> World:
    size = dist.get_world_size()
    return World(rank, size, size, torch.device("cpu"), dist.group.WORLD)


def sharded(task, optimizers, world, settings=ShardingSettings(), batch_size=64):  # noqa: B008 - frozen
    fuse_optimizers(task, optimizers.tables)
    plan = None
    if world.first:
        cluster = this_machine("cpu", world.size, world.size)
        plan = plan_run(task, sharders(settings.communication), cluster, settings, batch_size, {}).placement
    return shard(task, world.from_first(plan), optimizers, world, settings.communication)
