"""Tables in host memory: chosen where HBM is short, priced by torchrec, kept in the plan file."""

import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.types import CacheParams
from torchrec.distributed.utils import add_params_from_parameter_sharding

from tests.support.planner_cases import cpus, gpus, module_of, planned, random_tables
from torchrec_xd.distributed.sharders import sharders, torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner import InfeasibleError, Planning, ShardingSettings, load_cluster, make_plan, plan_run
from torchrec_xd.planner.costs.options import LOAD_FACTORS, cost_tables
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.module_tables import module_tables
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.planner.plan import diff_plans, load_plan, read_plan
from torchrec_xd.planner.report.console import plan_view, verdicts_view
from torchrec_xd.planner.report.explanation import explain
from torchrec_xd.planner.report.lookups import measure_ranks
from torchrec_xd.planner.report.page import save_plan_page

PROFILES = Path(__file__).parents[2] / "configs" / "clusters"
L40S = load_cluster("8xL40S", PROFILES)
BIG = TableList(tables=(TableSpec(name="big", rows=200_000_000, dim=128), TableSpec(name="small", rows=1000, dim=128)))
"""95 GiB, and almost nothing."""


def run_plan(tables, cluster, **sharding):
    """As a run plans for itself."""
    constraints = ShardingSettings(**sharding).all_constraints
    planner = PlannerSettings(batch_size=4096, pooling=tables.pooling(), constraints=constraints, effort=20)
    return make_plan(module_of(tables), sharders(), cluster, planner)


@pytest.fixture(scope="module")
def offloaded() -> Planning:
    """A table of twice a GPU's memory, which default settings keep whole."""
    return run_plan(BIG, L40S)


def named(plan):
    return {table.name: table for table in plan.tables}


def test_a_table_beyond_hbm_gets_a_cache_in_it(offloaded):
    plan = offloaded.plan
    big, small = named(plan)["big"], named(plan)["small"]
    assert (big.sharding_type, big.kernel, small.kernel) == ("table_wise", "fused_uvm_caching", "fused")
    # 95 GiB of weights in 38 GiB of HBM: the cache of 40 % just does not fit with its bookkeeping.
    assert big.cache_load_factor == 0.2
    assert small.cache_load_factor is None
    assert max(plan.rank_hbm) <= plan.cluster.hbm_bytes < 200_000_000 * 128 * 4
    assert 200_000_000 * 128 * 4 < max(plan.rank_ddr) <= plan.cluster.ddr_bytes


def test_the_largest_cache_that_fits_is_chosen():
    chosen = [
        named(run_plan(BIG, L40S.with_changes(hbm_gib=hbm)).plan)["big"].cache_load_factor for hbm in (15, 30, 60, 80)
    ]
    assert chosen == [0.1, 0.2, 0.4, 0.6]
    # No cache fits into 5 GiB.
    assert named(run_plan(BIG, L40S.with_changes(hbm_gib=5)).plan)["big"].kernel == "fused_uvm"


def storage_by_torchrec(planning):
    """HBM and DDR of each rank `[2, W]`, and time of each table: torchrec's estimates of its form of the plan."""
    cluster, tables = planning.problem.cluster, planning.problem.tables
    sharded = planning.plan.sharding_plan(tables)
    data = build_sharder_data_map({sharder_name(t.sharder.module_type): t.sharder for t in tables})
    used = np.zeros((2, cluster.world_size), dtype=np.int64)
    took = {}
    for table in tables:
        entry = sharded.plan[table.path][table.name]
        if entry.sharding_spec is None:
            sizes = [[table.rows, table.dim]] * cluster.world_size
        else:
            sizes = [list(shard.shard_sizes) for shard in entry.sharding_spec.shards]
        option = ShardingOption(
            name=table.name,
            tensor=table.parameter,
            module=(table.path, table.module),
            input_lengths=[planning.problem.settings.pooling.get(feature, 1.0) for feature in table.features],
            batch_size=planning.problem.settings.batch_size,
            sharding_type=entry.sharding_type,
            partition_by="device",
            compute_kernel=entry.compute_kernel,
            shards=[Shard(size, [0, 0], rank=rank) for size, rank in zip(sizes, entry.ranks, strict=True)],
            # priced as if rows were fetched when they are needed: torchrec takes what is fetched ahead for free
            cache_params=entry.cache_params and replace(entry.cache_params, prefetch_pipeline=None),
        )
        EmbeddingStorageEstimator(cluster.topology()).estimate([option], data)
        EmbeddingPerfEstimator(cluster.topology()).estimate([option], data)
        for shard in option.shards:
            used[:, shard.rank] += (shard.storage.hbm, shard.storage.ddr)
        took[table.name] = sum(shard.perf.total for shard in option.shards)
    return used, took


def test_bytes_and_time_are_torchrecs_for_the_same_cache(offloaded):
    used, took = storage_by_torchrec(offloaded)
    assert used.tolist() == [list(offloaded.plan.rank_hbm), list(offloaded.plan.rank_ddr)]
    assert took == pytest.approx({table.name: table.ms for table in offloaded.plan.tables})


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([1, 2, 8]), st.floats(0.05, 10))
@settings(max_examples=20, deadline=None)
def test_no_plan_of_a_run_exceeds_memory_as_torchrec_counts_it(seed, count, world_size, hbm_gib):
    cluster = gpus(world_size, hbm_gib=hbm_gib, ddr_gib=16)
    try:
        planning = run_plan(random_tables(count, seed, 8), cluster, types=("table_wise", "row_wise"))
    except InfeasibleError:
        return
    used, _ = storage_by_torchrec(planning)
    assert (used <= np.array([[cluster.hbm_bytes], [cluster.ddr_bytes]])).all()
    assert planning.plan.lower_bound_ms <= planning.plan.slowest_rank_ms


@pytest.mark.parametrize("profile", ["8xA100-40G", "8xH100", "8xB200", "8xL40S", "torchrec-defaults"])
def test_hbm_is_faster_than_any_cache_and_a_cache_than_none(profile):
    """So that tables leave HBM only where it has no room for them."""
    tables = module_tables(module_of(BIG), torchrec_sharders())
    (big, _) = cost_tables(tables, load_cluster(profile, PROFILES), 4096, {})
    by_shape = defaultdict(list)
    for option in big:
        if option.kernel != "dense":
            by_shape[option.sharding_type, option.column_dim].append(option)
    assert len(by_shape) >= 5
    for options in by_shape.values():
        order = sorted(options, key=lambda option: option.total_ms)
        assert [(o.kernel, o.cache_load_factor) for o in order] == [
            ("fused", None),
            *(("fused_uvm_caching", factor) for factor in sorted(LOAD_FACTORS, reverse=True)),
            ("fused_uvm", None),
        ]


@pytest.mark.parametrize("seed", range(3))
def test_what_fits_stays_in_hbm(seed):
    plan = run_plan(random_tables(12, seed, 6), gpus(4)).plan
    assert {table.kernel for table in plan.tables} == {"fused"}


@pytest.mark.parametrize("seed", range(4))
def test_no_table_waits_for_host_memory_while_its_rank_has_room(seed):
    """The search looks at the slowest rank; the other ranks use their memory as well."""
    planning = planned(random_tables(20, seed, 7.5), gpus(4, hbm_gib=2), effort=20)
    plan = planning.plan
    assert any(table.kernel == "fused_uvm_caching" for table in plan.tables)
    free = [plan.cluster.hbm_bytes - used for used in plan.rank_hbm]
    for option, options, ranks in zip(planning.chosen, planning.problem.options, planning.ranks, strict=True):
        for other in options:
            same = (other.sharding_type, other.num_shards) == (option.sharding_type, option.num_shards)
            if same and other.total_ms < option.total_ms:
                more = [b.storage.hbm - a.storage.hbm for a, b in zip(option.runs, other.runs, strict=True)]
                assert max(more) > min(free[rank] for rank in ranks)


def test_plans_on_cpu_know_no_cache():
    tables = random_tables(8, 3)
    plan = run_plan(tables, cpus(2), types=("table_wise", "row_wise")).plan
    before = Constraint(tables=("*",), sharding_types=("table_wise", "row_wise"), kernels=("fused",))
    planner = PlannerSettings(batch_size=4096, pooling=tables.pooling(), constraints=(before,), effort=20)
    assert plan == make_plan(module_of(tables), sharders(), cpus(2), planner).plan
    assert {table.kernel for table in plan.tables} == {"fused"}


def test_a_constraint_forbids_host_memory():
    forbid = Constraint(tables=("big",), forbid=("fused_uvm_caching", "fused_uvm"))
    with pytest.raises(InfeasibleError, match=r"table 'bags\.big': its smallest shard \(table_wise/fused\) exceeds"):
        run_plan(BIG, L40S, constraints=(forbid,))
    cached = Constraint(tables=("big",), forbid=("fused_uvm_caching",))
    assert named(run_plan(BIG, L40S, constraints=(cached,)).plan)["big"].kernel == "fused_uvm"


def test_the_load_factor_goes_through_the_file_to_fbgemm(offloaded, tmp_path):
    path = tmp_path / "plan.json"
    offloaded.plan.save(path)
    assert read_plan(path) == offloaded.plan
    for sharded in (
        load_plan(path, module_of(BIG), 8, sharders(), "cuda"),
        plan_run(module_of(BIG), sharders(), L40S, ShardingSettings(plan=path), 1, {}).sharding_plan,
    ):
        big, small = (sharded.plan["bags"][name] for name in ("big", "small"))
        cache = CacheParams(load_factor=0.2, prefetch_pipeline=True)
        assert (big.compute_kernel, big.cache_params) == ("fused_uvm_caching", cache)
        assert small.cache_params is None
        # What torchrec hands to FBGEMM's lookup.
        given = add_params_from_parameter_sharding({}, big)
        assert (given["cache_load_factor"], given["prefetch_pipeline"]) == (0.2, True)


def test_plan_files_without_load_factors_are_read_as_before(offloaded, tmp_path):
    path = tmp_path / "plan.json"
    offloaded.plan.save(path)
    content = json.loads(path.read_text())
    for table in content["tables"]:
        del table["cache_load_factor"]
    path.write_text(json.dumps(content))
    big = load_plan(path, module_of(BIG), 8).plan["bags"]["big"]
    assert (big.compute_kernel, big.cache_params) == ("fused_uvm_caching", None)
    assert "bags.big: cache_load_factor None -> 0.2" in diff_plans(read_plan(path), offloaded.plan)
    content["tables"][0]["cache_load_factor"] = 1.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'tables\.0\.cache_load_factor': .*less than 1 \(got 1\.5\)"):
        read_plan(path)


def test_views_show_the_load_factor(offloaded, tmp_path):
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(plan_view(offloaded.plan))
    verdicts = explain(offloaded, "big")
    console.print(verdicts_view("big", verdicts))
    text = console.export_text()
    assert text.count("fused_uvm_caching[0.2]") == 2
    assert {v.option.label for v in verdicts} == {
        "table_wise/fused",
        "table_wise/fused_uvm",
        *(f"table_wise/fused_uvm_caching[{factor}]" for factor in LOAD_FACTORS),
    }
    [larger] = [v for v in verdicts if v.option.cache_load_factor == 0.6]
    assert "GiB of HBM, a rank has" in larger.why
    save_plan_page(offloaded.plan, tmp_path / "plan.html")
    assert "<td>fused_uvm_caching[0.2]</td>" in (tmp_path / "plan.html").read_text()


def test_lookups_in_host_memory_are_not_measured_as_if_in_hbm(offloaded, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=r"--measure-lookups measures lookups in HBM, but the plan has .*: bags\.big"):
        measure_ranks(offloaded, "sgd")
