"""Torchrec takes the plans: dry on the meta device for eight ranks, for real on two."""

import torch
import torch.distributed as dist
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.distributed.remote_device import _remote_device
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.planner_cases import cpus, gpus, module_of, planned, random_tables
from tests.support.ranks import run_ranks
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.planner import PlannerSettings, plan_module
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.tables import TableList, TableModule, TableSpec
from torchrec_xd.planner.plan import load_plan

TABLES = TableList(
    tables=(
        TableSpec(name="a", rows=1000, dim=64),
        TableSpec(name="b", rows=400, dim=32, features=2),
        TableSpec(name="c", rows=10, dim=64),
        TableSpec(name="d", rows=300, dim=256),
        TableSpec(name="e", rows=50, dim=16, sequence=True),
    ),
    constraints=(
        Constraint(tables=("a",), sharding_types=("table_wise",)),
        Constraint(tables=("c",), sharding_types=("data_parallel",)),
        Constraint(tables=("d",), sharding_types=("column_wise",)),
    ),
)


def shard_dry(tables: TableList, plan: ShardingPlan) -> list[str]:
    """Names of the tables that this rank holds a part of; no memory is taken."""
    for collection in plan.plan.values():
        for parameter in collection.values():
            for shard in parameter.sharding_spec.shards if parameter.sharding_spec else ():
                shard.placement = _remote_device(f"rank:{shard.placement.rank()}/meta")
    model = DistributedModelParallel(
        module_of(tables),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("meta"),
        plan=plan,
        sharders=torchrec_sharders(),
        init_data_parallel=False,
        init_parameters=False,
    )
    return sorted(name.split(".")[-2] for name, _ in model.named_parameters())


def shard_all_dry(rank: int, plans: list[tuple[TableList, ShardingPlan]]) -> list[list[str]]:
    """`shard_dry` for several."""
    return [shard_dry(*plan) for plan in plans]


def test_model_parallel_accepts_plans_dry():
    plans = []
    for tables, cluster in ((TABLES, cpus(2)), (random_tables(12, 1), cpus(2)), (random_tables(12, 2, 9), gpus(2))):
        settings = PlannerSettings(constraints=tables.constraints)
        plans.append((tables, plan_module(module_of(tables), torchrec_sharders(), cluster, settings)))
    held = run_ranks(2, shard_all_dry, plans)
    # Every rank knows every table; what it holds of it is a shard without memory.
    names = [sorted(table.name for table in tables.tables) for tables, _ in plans]
    assert held == [names, names]


class Summed(torch.nn.Module):
    """All vectors of all tables, summed."""

    def __init__(self, tables: TableModule) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, bags: KeyedJaggedTensor, sequences: KeyedJaggedTensor) -> torch.Tensor:
        """Scalar."""
        pooled = sum((v * v).sum() for v in self.tables.bags(bags).to_dict().values())
        unpooled = sum((v.values() ** 2).sum() for v in self.tables.sequences["dim_16"](sequences).values())
        return pooled + unpooled


def ids(rank: int) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor]:
    """Two samples per rank."""
    draw = torch.Generator().manual_seed(rank)
    keys, rows = ["a", "b_0", "b_1", "c", "d"], [1000, 400, 400, 10, 300]
    values = torch.cat([torch.randint(0, n, (2,), generator=draw) for n in rows])
    bags = KeyedJaggedTensor(keys, values, lengths=torch.ones(10, dtype=torch.int32))
    sequences = KeyedJaggedTensor(["e"], torch.randint(0, 50, (5,), generator=draw), lengths=torch.tensor([2, 3]))
    return bags, sequences


def train_two_steps(rank: int, path: str) -> list[float]:
    """Losses of two steps under the plan in a file."""
    model = Summed(TableModule(TABLES, "fp32"))
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=load_plan(path, model, 2, device="cpu"),
        sharders=torchrec_sharders(),
    )
    losses = []
    for _ in range(2):
        loss = sharded(*ids(rank))
        loss.backward()
        losses.append(loss.item())
    return losses


def test_two_gloo_ranks_train_under_a_loaded_plan(tmp_path):
    module = torch.nn.ModuleDict({"tables": module_of(TABLES)})
    plan_path = tmp_path / "plan.json"
    planned(TABLES, cpus(2)).plan.save(plan_path)
    text = plan_path.read_text().replace('"path": "', '"path": "tables.')
    plan_path.write_text(text)
    assert load_plan(plan_path, module, 2).plan.keys() == {"tables.bags", "tables.sequences.dim_16"}
    losses = run_ranks(2, train_two_steps, plan_path)
    for first, second in losses:
        # The fused optimizer shrinks what it looked up; its tables moved.
        assert 0 < second < first
