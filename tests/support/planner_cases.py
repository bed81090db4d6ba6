"""Small clusters and table sets that the planner's tests share."""

from __future__ import annotations

import random

from torchrec_xd.distributed.optimizers import announce_optimizer
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.planner import PlannerSettings, Planning, make_plan
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.tables import TableList, TableModule, TableSpec


def gpus(world_size: int, **changes: object) -> Cluster:
    """GPUs with torchrec's own bandwidths, eight a node."""
    cluster = Cluster(device="cuda", world_size=world_size, ranks_per_node=min(8, world_size), hbm_gib=80, ddr_gib=128)
    return cluster.with_changes(**changes)


def cpus(world_size: int, **changes: object) -> Cluster:
    """Processes of one machine."""
    cluster = Cluster(device="cpu", world_size=world_size, ranks_per_node=world_size, hbm_gib=0, ddr_gib=8)
    return cluster.with_changes(**changes)


def random_tables(count: int, seed: int, largest_rows: float = 7.0) -> TableList:
    """Tables of 10 to 10**`largest_rows` rows, a third of them sequences or shared by two features."""
    draw = random.Random(seed)
    return TableList(
        tables=tuple(
            TableSpec(
                name=f"t{i}",
                rows=int(10 ** draw.uniform(1, largest_rows)),
                dim=draw.choice([8, 32, 64, 128, 256]),
                features=draw.choice([1, 1, 2]),
                pooling=draw.choice([0.5, 1, 20, 63.5]),
                sequence=draw.random() < 0.2,
            )
            for i in range(count)
        )
    )


def module_of(tables: TableList, dtype: str = "fp32", optimizer: str = "rowwise_adagrad") -> TableModule:
    """The tables as a module that knows its optimizer."""
    module = TableModule(tables, dtype)
    announce_optimizer(module, optimizer)
    return module


def planned(tables: TableList, cluster: Cluster, **settings: object) -> Planning:
    """The plan of a table list with its own constraints."""
    options = {"pooling": tables.pooling(), "constraints": tables.constraints, **settings}
    return make_plan(module_of(tables), torchrec_sharders(), cluster, PlannerSettings(**options))
