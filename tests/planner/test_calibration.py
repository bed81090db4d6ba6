"""Measured costs: fitted, used in costs, checked against real lookups."""

import itertools
import json
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.planner_cases import cpus, gpus, module_of, planned
from torchrec_xd.cli.plan import app
from torchrec_xd.distributed.links import Links
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner.costs import measurement, rates
from torchrec_xd.planner.costs.measurement import Measured, fit, median_error, run_lookup
from torchrec_xd.planner.costs.options import cost_tables
from torchrec_xd.planner.inputs.cluster import Calibration, LookupCost, LookupWork
from torchrec_xd.planner.inputs.module_tables import module_tables
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.planner.report.lookups import measure_ranks

COST = LookupCost(
    per_table_ms=0.01,
    per_lookup_ms=2e-5,
    per_row_ms=4e-5,
    per_cold_row_ms=3e-4,
    per_byte_ms=1e-7,
    per_output_byte_ms=5e-7,
    cache_mib=4.0,
)
TWICE = COST.model_copy(update={name: 2 * getattr(COST, name) for name in LookupCost.model_fields if "per_" in name})
CALIBRATION = Calibration(
    machine="here", optimizer="sgd", forward={"fp32": COST}, backward={"fp32": TWICE}, median_error={"fp32": 0.0}
)


def test_cost_of_one_lookup_by_hand():
    # 1024 x 1024 rows of 4 bytes x 1: 4 MiB, half of which is cached.
    work = LookupWork(rows=2**20, dim=1, type_bytes=4, lookups=1000, outputs=100)
    by_hand = 0.01 + 1000 * 2e-5 + 1000 * 4e-5 + 500 * 3e-4 + 4000 * 1e-7 + 400 * 5e-7
    # A thousand ids out of a million rows are distinct but for one in two thousand.
    assert COST.milliseconds(work) == pytest.approx(by_hand, rel=1e-3)
    # A thousand ids out of two rows are two rows.
    hot = LookupWork(rows=2, dim=1, type_bytes=4, lookups=1000, outputs=100)
    assert COST.milliseconds(hot) == pytest.approx(0.01 + 0.02 + 2 * 4e-5 + 4e-4 + 2e-4, rel=1e-3)


def test_fit_finds_the_costs_that_made_the_times():
    works = [
        LookupWork(rows, dim, 4.0, samples * length, samples)
        for rows, dim, (samples, length) in itertools.product(
            (100, 3000, 30_000, 10**6), (8, 64), ((512, 1), (4096, 1), (512, 20))
        )
    ]
    times = [COST.milliseconds(work) for work in works]
    found = fit(works, times)
    assert found.cache_mib == 4.0
    other = LookupWork(200_000, 32, 4.0, 7000, 1000)
    assert found.milliseconds(other) == pytest.approx(COST.milliseconds(other), rel=1e-6)
    off = Measured(other, 2 * COST.milliseconds(other), 0.0)
    free = COST.model_copy(update={name: 0.0 for name in LookupCost.model_fields if "per_" in name})
    assert median_error([off], found, free) == pytest.approx(0.5)


def test_calibrated_costs_take_lookups_as_measured_and_exchange_as_torchrec():
    listed = TableList(tables=(TableSpec(name="t", rows=5000, dim=64, features=2, pooling=(1, 3)),))
    tables = module_tables(module_of(listed), torchrec_sharders())
    plain, measured = gpus(2), gpus(2, calibration=CALIBRATION.model_dump())
    for before, after in zip(
        cost_tables(tables, plain, 100, listed.pooling())[0],
        cost_tables(tables, measured, 100, listed.pooling())[0],
        strict=True,
    ):
        assert before.label == after.label
        old, new = before.runs[0].perf, after.runs[0].perf
        assert (new.fwd_comms, new.bwd_comms) == (old.fwd_comms, old.bwd_comms)
        if after.label == "table_wise/fused":
            # 100 samples x 2 ranks x (1 + 3) ids, two vectors for each of the 200 samples.
            work = LookupWork(5000, 64, 4, 800, 400)
            assert new.fwd_compute == pytest.approx(COST.milliseconds(work))
            assert new.bwd_compute == pytest.approx(2 * COST.milliseconds(work))
            fused = new.fwd_compute
        if after.label == "table_wise/fused_uvm":
            # As much slower as torchrec holds host memory slower than HBM.
            assert new.fwd_compute == pytest.approx(fused * 897 / (32 / 10))


def test_calibrated_row_shards_split_the_ids():
    listed = TableList(tables=(TableSpec(name="t", rows=5000, dim=64),))
    tables = module_tables(module_of(listed), torchrec_sharders())
    (options,) = cost_tables(tables, gpus(4, calibration=CALIBRATION.model_dump()), 100, {})
    (rows,) = [o for o in options if o.label == "row_wise/fused"]
    assert rows.runs[0].perf.fwd_compute == pytest.approx(COST.milliseconds(LookupWork(1250, 64, 4, 100, 400)))
    (replica,) = [o for o in options if o.sharding_type == "data_parallel"]
    assert replica.runs[0].perf.fwd_compute == pytest.approx(2 * COST.milliseconds(LookupWork(5000, 64, 4, 100, 100)))


def test_types_that_were_not_measured_are_errors():
    listed = TableList(tables=(TableSpec(name="t", rows=50, dim=8, dtype="fp16"),))
    with pytest.raises(UserError, match="covers fp32, no weights of 2 bytes"):
        planned(listed, gpus(2, calibration=CALIBRATION.model_dump()))


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("fp16", 2)])
def test_a_real_lookup_holds_weights_and_state(dtype, size):
    works = [LookupWork(1000, 8, size, 60, 20), LookupWork(500, 4, size, 20, 20)]
    forward, backward, held = run_lookup(works, dtype, "cpu", "rowwise_adagrad")
    assert min(forward, backward) > 0
    needed = (1000 * 8 + 500 * 4) * size + 1500 * 4
    # FBGEMM keeps small index tensors besides.
    assert needed <= held < needed + 2000


def test_lookups_of_every_rank_are_measured():
    listed = TableList(
        tables=(TableSpec(name="big", rows=20_000, dim=32, pooling=3), TableSpec(name="small", rows=100, dim=8))
    )
    planning = planned(listed, cpus(2), batch_size=64)
    measured = measure_ranks(planning, "rowwise_adagrad")
    assert [rank.rank for rank in measured] == [0, 1]
    assert all(rank.measured_ms > 0 for rank in measured)
    # Torchrec's estimate counts ids and vectors besides weights and state.
    assert max(rank.measured_bytes for rank in measured) == pytest.approx(20_000 * (32 * 4 + 4), rel=0.01)
    assert all(rank.estimated_bytes >= 0.9 * rank.measured_bytes for rank in measured)
    with pytest.raises(UserError, match="which has no CUDA device"):
        measure_ranks(planned(listed, gpus(2)), "sgd")
    with pytest.raises(UserError, match="no fused adam on CPU; choose sgd"):
        measure_ranks(planning, "adam")


def test_calibrating_takes_the_gpus_of_the_machine(tmp_path, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: gpu)
    monkeypatch.setattr(rates, "calibrate", lambda device, optimizer: CALIBRATION if device == "cuda" else None)
    monkeypatch.setattr(rates, "measure_rates", lambda device: {"tf32_tflops": 321.0} if device == "cuda" else {})
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "here.yaml"), "--world-size", "16"])
    assert done.exit_code == 0, done.output
    profile = yaml.safe_load((tmp_path / "here.yaml").read_text())
    assert (profile["gpu"], profile["hbm_gib"], profile["world_size"], profile["ranks_per_node"]) == (
        "H200",
        139,
        16,
        4,
    )
    assert profile["calibration"]["machine"] == "here"
    assert profile["tf32_tflops"] == 321  # measured, not the data sheet's


class Event:
    """A CUDA event on a GPU whose clock is set by hand."""

    now_ms = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now_ms

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_gpus_time_is_taken_by_events_that_are_waited_for_once(monkeypatch):
    waits = []
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waits.append(1))
    watch = measurement.Stopwatch("cuda")
    for Event.now_ms in (5.0, 7.5, 12.0):
        watch.mark()
    assert not waits
    assert watch.passed_ms() == [2.5, 4.5]
    assert waits == [1]


def test_the_fastest_call_but_the_first_counts(monkeypatch):
    # Per call: forward, backward, and what is between calls and does not count.
    calls = [(1.0, 1.0, 50.0), *((10.0 - 0.1 * i, 20.0 + i, 0.5) for i in range(measurement.REPEATS))]
    clock = itertools.accumulate([0.0, *itertools.chain(*calls)])

    class Scripted(Event):
        def record(self):
            self.at = next(clock)

    monkeypatch.setattr("torch.cuda.Event", Scripted)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    stopwatch = measurement.Stopwatch
    monkeypatch.setattr(measurement, "Stopwatch", lambda device: stopwatch("cuda"))
    forward, backward, _ = run_lookup([LookupWork(100, 8, 4, 60, 20)], "fp32", "cpu", "sgd")
    assert (forward, backward) == (pytest.approx(10.0 - 0.1 * (measurement.REPEATS - 1)), pytest.approx(20.0))


def test_the_command_writes_a_profile_that_plans(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "FIT_SHAPES", tuple(itertools.product((100, 5000), (8, 32), ((64, 1), (64, 5)))))
    monkeypatch.setattr(measurement, "HELD_OUT_SHAPES", ((1000, 16, (64, 2)),))
    monkeypatch.setattr(rates, "measure_links", lambda processes: Links(1.0, 1.0))
    profile, tables = tmp_path / "here.yaml", tmp_path / "tables.csv"
    # Without --cluster: this machine has no GPU, so that the profile `cpu` is completed.
    done = CliRunner().invoke(app, ["calibrate", str(profile)])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(profile.read_text())["device"] == "cpu"
    assert "median error" in done.output
    assert set(yaml.safe_load(profile.read_text())["calibration"]["forward"]) == {"fp32", "fp16"}
    tables.write_text("name,rows,dim\na,1000,16\nb,500,8\n")
    report = tmp_path / "report.json"
    words = ["make", "--tables", str(tables), "--cluster", str(profile), "--measure-lookups", "--json", str(report)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "lookups estimated" in done.output
    assert [rank["rank"] for rank in json.loads(report.read_text())["lookups"]] == [0, 1]
