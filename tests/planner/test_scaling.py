"""How long a step takes, part by part, and how that grows with the ranks: by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.planner_cases import cpus, gpus, module_of
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import GIB
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.planner.plan import Plan
from torchrec_xd.planner.step.counting import DenseWork, Operator
from torchrec_xd.planner.step.estimate import (
    all_reduce_ms,
    check_precision,
    default_precision,
    estimate_step,
    input_ms,
    kernels_ms,
)
from torchrec_xd.planner.step.scaling import MOST_RANKS, ScalePoint, Size, parse_ranks, scale, sizes

ROUND = {
    "hbm_gib_s": 1000,  # 2**30 bytes per ms
    "hbm_to_ddr_gib_s": 10,
    "intra_node_gib_s": 100,
    "inter_node_gib_s": 10,
    "fp32_tflops": 1,
    "tf32_tflops": 10,
    "launch_us": 10,
}
"""Round numbers; half of a TFLOP/s is 5e8 FLOPs per ms."""


def work_of(**changes):
    """2 ms of matrix products and 3 ms of memory traffic in fp32, 1 ms and 2 ms of them in the backward pass."""
    content = {
        "forward": (Operator("mm", 5e8, 8), Operator("add", 0, GIB)),
        "backward": (Operator("mm", 5e8, 8), Operator("add", 0, GIB)),
        "optimizer": Operator("AdamW", 0, GIB),
        "gradient_bytes": GIB // 10,
        "batch_bytes": GIB // 100,
        "id_bytes": GIB // 200,
    }
    return DenseWork(**{**content, **changes})


def plan_of(cluster, compute=(2.0, 1.0), comms=(1.0, 4.0), batch_size=500):
    """A plan with given times by rank."""
    return Plan(
        cluster=cluster,
        batch_size=batch_size,
        slowest_rank_ms=max(a + b for a, b in zip(compute, comms, strict=True)),
        lower_bound_ms=0,
        tables=(),
        rank_compute_ms=compute,
        rank_comms_ms=comms,
        rank_hbm=(0,) * len(compute),
        rank_ddr=(0,) * len(compute),
    )


def test_operators_are_limited_by_arithmetic_or_by_memory():
    cluster = gpus(1, **ROUND)
    assert kernels_ms(work_of().operators, cluster, "fp32") == (pytest.approx(2), pytest.approx(3))
    assert kernels_ms(work_of().operators, cluster, "tf32") == (pytest.approx(0.2), pytest.approx(3))
    # One operator that does both takes the longer of the two times, not their sum.
    both = (Operator("mm", 1e9, GIB),)
    assert kernels_ms(both, cluster, "fp32") == (pytest.approx(2), 0)
    assert kernels_ms(both, cluster, "tf32") == (0, pytest.approx(1))
    measured = cpus(1, fp32_tflops=1, gemm_efficiency=1, ddr_gib_s=500)
    assert kernels_ms(work_of().operators, measured, "fp32") == (pytest.approx(1), pytest.approx(6))


def test_all_reduce_by_hand():
    assert all_reduce_ms(GIB, gpus(1, **ROUND)) == 0
    assert all_reduce_ms(GIB, gpus(2, **ROUND)) == pytest.approx(2 * 1 / 2 * 10)
    assert all_reduce_ms(GIB, gpus(8, **ROUND)) == pytest.approx(2 * 7 / 8 * 10)
    # Between nodes at a tenth of the bandwidth.
    assert all_reduce_ms(GIB, gpus(16, **ROUND)) == pytest.approx(2 * 15 / 16 * 100)
    # Where it was measured, as measured, but no faster than the links between nodes.
    assert all_reduce_ms(GIB, gpus(2, **ROUND, all_reduce_gib_s=50)) == pytest.approx(20)
    assert all_reduce_ms(GIB, gpus(16, **ROUND, all_reduce_gib_s=50)) == pytest.approx(2 * 15 / 16 * 100)


@given(ranks=st.sampled_from([1, 2, 4, 8, 16, 64, 1024]))
def test_a_rank_never_sends_more_than_twice_its_gradients(ranks):
    links = {**ROUND, "inter_node_gib_s": ROUND["intra_node_gib_s"]}
    assert all_reduce_ms(GIB, gpus(ranks, **links)) <= 2 * 10


def test_input_by_hand():
    work = work_of(batch_bytes=GIB, id_bytes=GIB // 2)
    assert input_ms(work, gpus(1, **ROUND)) == pytest.approx(100)
    assert input_ms(work, gpus(2, **ROUND)) == pytest.approx(100 + 0.5 * 0.5 * 10)
    # On a CPU the batch is where it has to be.
    assert input_ms(work, cpus(1, intra_node_gib_s=100)) == 0
    assert input_ms(work, cpus(2, intra_node_gib_s=100)) == pytest.approx(0.5 * 0.5 * 10)


def test_the_parts_of_a_step_on_gpus():
    step = estimate_step(plan_of(gpus(2, **ROUND)), work_of(), "fp32")
    # Rank 1 is the slowest: 1 ms of lookups; of its 4 ms of exchange half stays on the rank.
    assert (step.lookups_ms, step.exchange_ms) == (1.0, 2.0)
    assert step.dense_ms == pytest.approx(5)
    # 1 ms, less than the 2 ms of the backward pass.
    assert (step.all_reduce_ms, step.exposed_ms) == (pytest.approx(1, rel=1e-6), 0)
    assert step.launches_ms == pytest.approx(5 * 0.01)
    assert step.input_ms == pytest.approx(1 + 0.5 * 0.05, rel=1e-6)
    assert step.step_ms == pytest.approx(1 + 2 + 5)
    assert step.binds == "dense memory"


def test_on_gpus_the_slowest_of_what_runs_side_by_side_binds():
    plan = plan_of(gpus(2, **ROUND))
    cases = {
        "launches": {"forward": (Operator("add", 0, 8),) * 5000},
        "input": {"batch_bytes": GIB},
        "all-reduce": {"gradient_bytes": 4 * GIB},
        "dense compute": {"forward": (Operator("mm", 5e9, 8),)},
    }
    steps = {name: estimate_step(plan, work_of(**changes), "fp32") for name, changes in cases.items()}
    assert {name: step.binds for name, step in steps.items()} == {name: name for name in cases}
    assert steps["launches"].step_ms == pytest.approx(5003 * 0.01, rel=1e-6)
    assert steps["input"].step_ms == pytest.approx(100.025, rel=1e-6)
    # 40 ms of all-reduce, of which the backward pass hides 2.
    assert steps["all-reduce"].exposed_ms == pytest.approx(38)
    assert steps["all-reduce"].step_ms == pytest.approx(1 + 2 + 5 + 38)
    assert estimate_step(plan_of(gpus(2, **ROUND), (90, 1)), work_of(), "fp32").binds == "lookups"
    assert estimate_step(plan_of(gpus(2, **ROUND), comms=(90, 1)), work_of(), "fp32").binds == "exchange"
    read = estimate_step(plan, work_of(), "fp32", reader_rows_per_s=5000)
    assert (read.step_ms, read.binds) == (100.0, "reader")


def test_on_cpus_all_but_reading_is_waited_for():
    cluster = cpus(2, ddr_gib_s=1000, intra_node_gib_s=100, fp32_tflops=1, gemm_efficiency=0.5, launch_us=10)
    step = estimate_step(plan_of(cluster), work_of(), "fp32", reader_rows_per_s=500_000)
    assert step.reader_ms == 1.0
    assert step.step_ms == pytest.approx(1 + 2 + 5 + 1 + 0.05 + 0.5 * 0.05, rel=1e-6)
    assert step.binds == "dense memory"
    assert estimate_step(plan_of(cluster), work_of(), "fp32", reader_rows_per_s=5000).step_ms == 100.0


def test_one_rank_exchanges_nothing():
    step = estimate_step(plan_of(gpus(1, **ROUND), (1.0,), (5.0,)), work_of(), "fp32")
    assert (step.exchange_ms, step.all_reduce_ms) == (0, 0)


def test_precision():
    cluster, cpu = gpus(1, **ROUND), cpus(1, fp32_tflops=1, bf16_tflops=2)
    assert default_precision(cluster, "fp32") == "tf32"
    assert default_precision(cluster, "auto") == "tf32"
    assert default_precision(cluster, "bf16") == "bf16"
    assert default_precision(gpus(1), "fp32") == "fp32"
    assert default_precision(cpu, "fp32") == "fp32"
    assert default_precision(cpu, "auto") == "bf16"
    with pytest.raises(UserError, match=r"no 'bf16_tflops'.*\(it has: fp32, tf32\); add it to the profile"):
        check_precision(cluster, "bf16")
    with pytest.raises(UserError, match="only GPUs have TF32; choose fp32 or bf16"):
        check_precision(cpu, "tf32")


def test_ranks_double():
    assert parse_ranks("1..1024") == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert parse_ranks("8..64") == [8, 16, 32, 64]
    assert parse_ranks("3..20") == [3, 6, 12]
    assert parse_ranks("2..2") == [2]


@pytest.mark.parametrize("text", ["4..2", "0..8", "x", "8", "1..", "-1..4", "1..2..4", f"1..{MOST_RANKS + 1}", ""])
def test_other_ranks_are_refused(text):
    with pytest.raises(UserError, match=f"ranks '{text}': give the smallest and the largest .* for example 1..1024"):
        parse_ranks(text)


def test_sizes():
    cluster = gpus(8)
    weak, strong = sizes(cluster, [1, 8, 16], 512), sizes(cluster, [1, 8, 16], 512, 4096)
    assert [(s.cluster.world_size, s.batch_size) for s in weak] == [(1, 512), (8, 512), (16, 512)]
    assert [s.batch_size for s in strong] == [4096, 512, 256]
    with pytest.raises(UserError, match="global batch 100: 8 ranks cannot share it equally; give a multiple of 16"):
        sizes(cluster, [1, 8, 16], 512, 100)
    with pytest.raises(UserError, match="world_size 12 is no multiple of ranks_per_node 8"):
        sizes(cluster, [6, 12], 512)


def test_cost_of_a_million_rows():
    step = estimate_step(plan_of(gpus(2, **ROUND)), work_of(), "fp32")
    point = ScalePoint(Size(gpus(2, **ROUND, price_per_hour=3.6), 500), step)
    # 8 ms for 2 x 500 rows: 125,000 rows/s, 8 s for a million, at 0.002 a second.
    assert point.rows_per_s == pytest.approx(125_000)
    assert point.cost_per_million_rows == pytest.approx(0.016)
    assert ScalePoint(Size(gpus(2), 500), step).cost_per_million_rows is None
    assert ScalePoint(Size(gpus(2, price_per_hour=1), 500), None).cost_per_million_rows is None


def scaled(listed, cluster, ranks, **settings):
    planner = PlannerSettings(pooling=listed.pooling(), effort=20)
    at = sizes(cluster, ranks, 512, settings.pop("global_batch", None))
    counted = []

    def count(rows):
        counted.append(rows)
        return work_of()

    points = scale(module_of(listed), torchrec_sharders(), planner, at, count, "fp32", **settings)
    return points, counted


def test_a_size_that_does_not_fit_is_a_point_without_a_step():
    # 64 GiB of weights: a quarter of them, with optimizer state and buffers, fits into 20 GiB, half of them does not.
    listed = TableList(tables=(TableSpec(name="big", rows=2**27, dim=128),))
    cluster = gpus(8, **ROUND, hbm_gib=20, ddr_gib=20, reservation=0)
    points, counted = scaled(listed, cluster, [1, 2, 4, 8])
    assert [point.step is None for point in points] == [True, True, False, False]
    assert "no plan fits 1 tables into 1 ranks" in points[0].reason
    assert points[0].rows_per_s is points[0].efficiency is None
    assert points[2].efficiency == 1.0
    assert counted == [512]


def test_weak_scaling_never_gains_on_the_smallest_size():
    # Enough equal tables that all numbers of ranks share them equally.
    listed = TableList(tables=tuple(TableSpec(name=f"t{i}", rows=10**5, dim=64, pooling=4) for i in range(64)))
    points, _ = scaled(listed, gpus(8, **ROUND), [1, 2, 4, 8, 16, 64])
    assert all(point.rows_per_s > 0 for point in points)
    assert all(0 < point.efficiency <= 1 + 1e-9 for point in points)
    assert points[1].step.exchange_ms > 0


def test_strong_scaling_counts_every_batch_size_once():
    listed = TableList(tables=(TableSpec(name="a", rows=100, dim=8),))
    points, counted = scaled(listed, gpus(8, **ROUND), [1, 2, 4], global_batch=4096)
    assert counted == [4096, 2048, 1024]
    assert [point.size.batch_size for point in points] == [4096, 2048, 1024]


def test_the_precision_is_checked_before_anything_is_counted():
    listed = TableList(tables=(TableSpec(name="a", rows=100, dim=8),))
    with pytest.raises(UserError, match="no 'fp32_tflops'"):
        scale(module_of(listed), torchrec_sharders(), PlannerSettings(), sizes(gpus(1), [1], 8), pytest.fail, "fp32")
