"""A plan survives the file, fits the model or says why not, and is explained."""

import json

import pytest
import torch
from torchrec.distributed.planner.planners import (
    validate_modules_inclusion_in_sharding_plan,
    validate_rank_assignment,
)

from tests.support.planner_cases import cpus, gpus, module_of, planned, random_tables
from torchrec_xd.distributed.sharders import sharders, torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner import (
    InfeasibleError,
    PlannerSettings,
    ShardingSettings,
    make_plan,
    plan_module,
)
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.planner.plan import diff_plans, load_plan, read_plan
from torchrec_xd.planner.report.explanation import explain
from torchrec_xd.planner.report.infeasible import remedies
from torchrec_xd.settings import validate

TABLES = random_tables(12, 7)


def test_a_plan_survives_the_file(tmp_path):
    for cluster in (gpus(16), cpus(2)):
        planning = planned(TABLES, cluster)
        planning.plan.save(tmp_path / "plan.json")
        assert read_plan(tmp_path / "plan.json") == planning.plan
        json.loads((tmp_path / "plan.json").read_text())
        loaded = load_plan(tmp_path / "plan.json", module_of(TABLES), cluster.world_size, device=cluster.device)
        assert loaded.plan == planning.plan.sharding_plan(planning.problem.tables).plan


@pytest.mark.parametrize("cluster", [gpus(1), gpus(16), cpus(2)], ids=["1 gpu", "16 gpus", "2 cpus"])
def test_plans_pass_torchrecs_own_checks_and_cover_every_element_once(cluster):
    module = module_of(TABLES)
    plan = plan_module(module, torchrec_sharders(), cluster, PlannerSettings(pooling=TABLES.pooling()))
    validate_modules_inclusion_in_sharding_plan(plan, module, torchrec_sharders())
    validate_rank_assignment(plan, cluster.topology())
    shapes = {t.name: (t.rows, t.dim) for t in TABLES.tables}
    for collection in plan.plan.values():
        for name, parameter in collection.items():
            if parameter.sharding_spec is None:
                assert parameter.ranks == list(range(cluster.world_size))
                continue
            shards = parameter.sharding_spec.shards
            assert sum(s.shard_sizes[0] * s.shard_sizes[1] for s in shards) == shapes[name][0] * shapes[name][1]
            assert [s.placement.rank() for s in shards] == parameter.ranks


def test_a_changed_model_is_refused_with_every_difference(tmp_path):
    planned(TABLES, cpus(2)).plan.save(tmp_path / "plan.json")
    first, second, third, *rest = TABLES.tables
    other = TableList(
        tables=(
            first.model_copy(update={"rows": first.rows + 1}),
            second.model_copy(update={"name": "new"}),
            third.model_copy(update={"dtype": "fp16"}),
            *rest,
        )
    )
    with pytest.raises(UserError) as error:
        load_plan(tmp_path / "plan.json", module_of(other), 2)
    text = str(error.value)
    assert f".t0' was planned with rows {first.rows}, the model has {first.rows + 1}" in text
    assert ".new' is in the model, not in the plan" in text
    assert ".t1' is in the plan, not in the model" in text
    assert ".t2' was planned with dtype float32, the model has float16" in text
    assert "plan again" in text


def test_other_world_sizes_and_devices_are_refused(tmp_path):
    planned(TABLES, cpus(2)).plan.save(tmp_path / "plan.json")
    with pytest.raises(UserError, match="planned for 2 ranks, but this run has 3"):
        load_plan(tmp_path / "plan.json", module_of(TABLES), 3)
    with pytest.raises(UserError, match="planned for 'cpu', but this run uses 'cuda'"):
        load_plan(tmp_path / "plan.json", module_of(TABLES), 2, device="cuda")
    moved = torch.nn.ModuleDict({"inside": module_of(TABLES)})
    with pytest.raises(
        UserError, match=r"(?s)'bags\.t1' is in the plan.*'inside\.bags\.t1' is in the model, not in the plan"
    ):
        load_plan(tmp_path / "plan.json", moved, 2)


@pytest.mark.parametrize("kind", ["grid_shard", "table_row_wise"])
@pytest.mark.parametrize("claimed", ["cuda", "cpu"])
def test_what_only_gpus_train_is_refused_on_cpu_by_name(tmp_path, kind, claimed):
    listed = TableList(tables=(TableSpec(name="wide", rows=1000, dim=256), TableSpec(name="other", rows=9, dim=8)))
    constraint = Constraint(tables=("wide",), sharding_types=(kind,))
    planned(listed, gpus(16), constraints=(constraint,)).plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    content["cluster"]["device"] = claimed
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_plan(tmp_path / "plan.json", module_of(listed), 16, sharders(), device="cpu")
    assert f"table 'bags.wide' is {kind}, which 'cpu' does not support" in str(error.value)
    assert "table_wise, column_wise, table_column_wise, row_wise" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("grid_shard", "grid_shard is not among types (table_wise, row_wise); it needs GPUs and a plan file"),
        ("table_row_wise", "(sharding.plan); types may be: table_wise, column_wise, table_column_wise, row_wise, data"),
        ("column_wise", "column_wise is not among types (table_wise, row_wise); add it to types"),
    ],
)
def test_a_run_refuses_constraints_that_its_types_leave_out(kind, said):
    constraint = {"tables": ["hist"], "sharding_types": ["table_wise", kind]}
    with pytest.raises(UserError) as error:
        validate(ShardingSettings, {"types": ["table_wise", "row_wise"], "constraints": [constraint]}, "run.yaml")
    assert "run.yaml: " in str(error.value)
    assert "constraint on hist: " in str(error.value)
    assert said in str(error.value)


def test_damaged_files_name_the_line_or_the_key(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(path)
    path.write_text('{"format":\n oops}')
    with pytest.raises(UserError, match=r"plan\.json:2: not valid JSON"):
        read_plan(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"expected a plan as .*, got list"):
        read_plan(path)
    planned(TABLES, cpus(2)).plan.save(path)
    content = json.loads(path.read_text())
    content["tables"][0]["ranks"] = [0, 0, 0, 0, 0]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"makes \d shards?, but the plan has ranks for 5"):
        load_plan(path, module_of(TABLES), 2)
    del content["batch_size"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="'batch_size' is required"):
        read_plan(path)


def test_diff_says_what_changed():
    before = planned(TABLES, gpus(8)).plan
    assert diff_plans(before, before) == []
    tables = list(before.tables)
    tables[0] = tables[0].model_copy(update={"sharding_type": "table_wise", "ranks": (7,), "column_dim": None})
    after = before.model_copy(update={"tables": (*tables[:-1],), "slowest_rank_ms": 1.0})
    lines = diff_plans(before, after)
    assert f"{before.tables[-1].fqn}: removed" in lines
    assert any(line.startswith(f"{tables[0].fqn}: ") and "ranks" in line for line in lines)
    assert f"slowest rank: {before.slowest_rank_ms:.3f} -> 1.000 ms" in lines


@pytest.mark.slow
def test_explain_costs_each_option_with_the_others_in_place():
    listed = TableList(
        tables=tuple(TableSpec(name=f"t{i}", rows=10_000_000, dim=64, pooling=10) for i in range(2)),
    )
    planning = planned(listed, gpus(2))
    verdicts = explain(planning, "t0")
    assert verdicts[0].chosen
    assert verdicts[0].why == "chosen"
    assert sum(v.chosen for v in verdicts) == 1
    assert len(verdicts) == len(planning.problem.options[0])
    for verdict in verdicts[1:]:
        constraint = Constraint(
            tables=("t0",), sharding_types=(verdict.option.sharding_type,), kernels=(verdict.option.kernel,)
        )
        again = planned(listed, gpus(2), constraints=(constraint,)).plan
        # Other tables may move then: what is explained is never better than planning anew.
        if verdict.slowest_rank_ms is not None:
            assert verdict.slowest_rank_ms >= again.slowest_rank_ms * (1 - 1e-9)
    (replicated,) = [v for v in verdicts if v.option.sharding_type == "data_parallel"]
    assert replicated.slowest_rank_ms > planning.plan.slowest_rank_ms
    assert "slowest rank" in replicated.why
    with pytest.raises(UserError, match="no table 'u'; tables: t0, t1"):
        explain(planning, "u")


def test_explain_says_where_memory_is_missing():
    # Two tables of 2.4 GiB on two ranks of 3 GiB: a replica of one needs room next to the other.
    listed = TableList(tables=tuple(TableSpec(name=f"t{i}", rows=10_000_000, dim=64) for i in range(2)))
    planning = planned(listed, gpus(2, hbm_gib=3.5))
    (replicated,) = [v for v in explain(planning, "t0") if v.option.sharding_type == "data_parallel"]
    assert replicated.slowest_rank_ms is None
    assert replicated.why == "needs 2.42 GiB of HBM on 2 ranks, free on 1"


def test_infeasible_says_what_is_short_and_what_would_fit():
    # One table of 4,000,000 x 64 fp32 with SGD: 1,024,000,000 bytes of weights, on ranks of 0.25 GiB.
    listed = TableList(tables=(TableSpec(name="big", rows=4_000_000, dim=64),))
    constraint = (Constraint(tables=("big",), sharding_types=("table_wise",)),)
    settings = PlannerSettings(batch_size=1, constraints=constraint)
    cluster = cpus(2, ddr_gib=0.75, reservation=0.0)
    with pytest.raises(InfeasibleError) as error:
        make_plan(module_of(listed, optimizer="sgd"), torchrec_sharders(), cluster, settings)
    # Ids: 1 x 8 bytes x 2 ranks; vectors: 1 x 64 x 4 bytes x 2 ranks.
    short = 4_000_000 * 64 * 4 + 16 + 512 - int(0.75 * 2**30)
    assert (
        f"'bags.big': its smallest shard (table_wise/fused) exceeds the limit of a rank by {short:,} bytes of DDR"
        in str(error.value)
    )
    changes = remedies(error.value.problem)
    assert "the constraint on big removed (allows column_wise, data_parallel, table_column_wise)" in changes
    assert "fp16 weights" in changes
    assert not any("ranks" in change for change in changes)


def test_infeasible_in_all_counts_the_bytes_of_all_ranks():
    listed = TableList(tables=tuple(TableSpec(name=f"t{i}", rows=1_000_000, dim=64) for i in range(4)))
    cluster = cpus(2, ddr_gib=0.3, reservation=0.0)
    with pytest.raises(InfeasibleError) as error:
        make_plan(module_of(listed, optimizer="sgd"), torchrec_sharders(), cluster, PlannerSettings(batch_size=1))
    # Each needs its weights and, at the least, ids and vectors of two samples.
    needed = 4 * (1_000_000 * 64 * 4 + 16 + 512)
    short = needed - 2 * int(0.3 * 2**30)
    assert f"all ranks together lack at least {short:,} bytes of DDR" in str(error.value)
    assert "4 ranks instead of 2" in remedies(error.value.problem)
