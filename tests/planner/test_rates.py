"""What `plan calibrate` measures besides lookups: it has to be in the right units, and to reach the profile."""

import itertools

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.planner_cases import cpus
from torchrec_xd.cli.plan import app
from torchrec_xd.distributed import links
from torchrec_xd.distributed.links import Links, exchange_speeds, measure_links
from torchrec_xd.planner import load_cluster
from torchrec_xd.planner.costs import measurement, rates
from torchrec_xd.planner.inputs.cluster import GIB
from torchrec_xd.planner.step.estimate import check_precision


def test_rates_are_work_over_time(monkeypatch):
    # Every call takes a thousandth of a second: FLOPs, bytes and launches by hand.
    monkeypatch.setattr(rates, "_fastest", lambda call, device, queued=False: 1e-3)
    monkeypatch.setattr(rates, "GEMMS", ((1000, 100, 50),) * 3)
    monkeypatch.setattr(rates, "FLOATS", 2**20)
    monkeypatch.setattr(rates, "fast_bf16", lambda device: False)
    assert rates.measure_rates("cpu") == {
        "fp32_tflops": pytest.approx(2 * 1000 * 100 * 50 / 1e-3 / 1e12),
        "gemm_efficiency": 1.0,
        "ddr_gib_s": pytest.approx(3 * 2**22 / 1e-3 / GIB),
        "launch_us": pytest.approx(1000 / (2 * rates.OPERATORS)),
    }
    monkeypatch.setattr(rates, "fast_bf16", lambda device: True)
    assert "bf16_tflops" in rates.measure_rates("cpu")


def test_real_rates_are_those_of_a_computer():
    found = rates.measure_rates("cpu")
    assert 1e-3 < found["fp32_tflops"] < 100
    assert 0.5 < found["ddr_gib_s"] < 2000
    assert 0.1 < found["launch_us"] < 1000


def test_links_are_bytes_sent_over_time(monkeypatch):
    monkeypatch.setattr(links.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(links, "_median", lambda exchange, repeats: 0.5)
    # 3 MiB of 4 leave a process; in a ring twice.
    found = exchange_speeds(4 * 2**20)
    assert found == Links(pytest.approx(3 / 1024 / 0.5), pytest.approx(6 / 1024 / 0.5))


@pytest.mark.slow
def test_real_links():
    found = measure_links(2)
    assert 1e-3 < found.all_to_all_gib_s < 1000
    assert 1e-3 < found.all_reduce_gib_s < 1000


def test_the_profile_has_what_a_whole_step_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "FIT_SHAPES", tuple(itertools.product((100, 5000), (8, 32), ((64, 1), (64, 5)))))
    monkeypatch.setattr(measurement, "HELD_OUT_SHAPES", ((1000, 16, (64, 2)),))
    asked = []
    monkeypatch.setattr(rates, "measure_links", lambda processes: asked.append(processes) or Links(0.5, 0.25))
    profile = tmp_path / "here.yaml"
    done = CliRunner().invoke(app, ["calibrate", str(profile), "--cluster", "cpu"])
    assert done.exit_code == 0, done.output
    assert asked == [2]
    cluster = load_cluster(str(profile), tmp_path)
    assert (cluster.intra_node_gib_s, cluster.all_reduce_gib_s, cluster.gemm_efficiency) == (0.5, 0.25, 1.0)
    assert cluster.calibration is not None
    check_precision(cluster, "fp32")
    assert yaml.safe_load(profile.read_text())["launch_us"] != 7.5


def test_one_process_has_no_links(monkeypatch):
    monkeypatch.setattr(rates, "calibrate", lambda device, optimizer: None)
    monkeypatch.setattr(rates, "measure_links", pytest.fail)
    found = rates.measured_cluster(cpus(1), "sgd")
    assert found.fp32_tflops > 0
    assert found.intra_node_gib_s == cpus(1).intra_node_gib_s
