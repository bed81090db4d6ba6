"""What the planner knows about GPUs: models by name, profiles, the GPUs of a run."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.cluster import Cluster, load_cluster, this_machine
from torchrec_xd.planner.inputs.gpus import GPUS, InstalledGpu, find_gpu
from torchrec_xd.settings import validate
from torchrec_xd.training import building

PROFILES = Path(__file__).parents[2] / "configs" / "clusters"
GIB = 1024**3
H100 = InstalledGpu("NVIDIA H100 80GB HBM3", 79 * GIB)
A100 = InstalledGpu("NVIDIA A100-SXM4-40GB", 39 * GIB)
NEW = InstalledGpu("NVIDIA Z900", 500 * GIB)
CPU = {"device": "cpu", "world_size": 1, "ranks_per_node": 1, "hbm_gib": 0, "ddr_gib": 8}


@pytest.fixture
def installed(monkeypatch):
    """Has torch report these GPUs."""

    def install(*gpus):
        found = [SimpleNamespace(name=gpu.name, total_memory=gpu.memory) for gpu in gpus]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found[torch.device(device).index])

    return install


@pytest.mark.parametrize(
    ("reported", "model"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
        # A part of a GPU has a part of its bandwidth, and other models only look alike.
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA L40", None),
    ],
)
def test_models_are_found_by_the_name_that_torch_reports(reported, model):
    assert find_gpu(reported) == model


def test_figures_are_those_of_the_data_sheets():
    """Decimal units there, binary ones here."""
    sheet = {
        "A100-40G": 1555,
        "A100-80G": 2039,
        "H100": 3350,
        "H100-PCIe": 2000,
        "H200": 4800,
        "B200": 8000,
        "L40S": 864,
    }
    for name, gb_s in sheet.items():
        assert GPUS[name].hbm_gib_s == pytest.approx(gb_s * 1e9 / GIB, rel=0.003), name
    memory = {"A100-40G": 40, "A100-80G": 80, "H100": 80, "H100-PCIe": 80, "H200": 141, "B200": 180, "L40S": 48}
    for name, gb in memory.items():
        assert GPUS[name].hbm_gib == pytest.approx(gb * 1e9 / GIB, rel=0.001), name
    for name, model in GPUS.items():
        # Dense tensor cores: bf16 is twice as fast as TF32. More would be a figure with sparsity.
        assert 1.9 < model.bf16_tflops / model.tf32_tflops < 2.1, name
        assert model.fp32_tflops < model.tf32_tflops, name
        assert model.hbm_to_ddr_gib_s <= model.intra_node_gib_s < model.hbm_gib_s, name
        assert "NVIDIA" in model.source


def test_a_profile_names_its_gpu_and_overrides_its_figures():
    profile = load_cluster("8xH200", PROFILES)
    assert (profile.gpu, profile.hbm_gib, profile.hbm_gib_s) == ("H200", 131.3, 4470)
    assert (profile.fp32_tflops, profile.tf32_tflops, profile.bf16_tflops) == (67, 494.5, 989.5)
    given = {"device": "cuda", "world_size": 1, "ranks_per_node": 1, "ddr_gib": 8, "gpu": "L40S"}
    changed = validate(Cluster, {**given, "hbm_gib": 40, "bf16_tflops": 300}, "mine.yaml")
    assert (changed.hbm_gib, changed.bf16_tflops, changed.hbm_gib_s) == (40, 300, 805)
    # A plan file holds all figures; reading it back changes none.
    assert Cluster.model_validate(changed.model_dump()) == changed
    assert changed.with_changes(gpu="B200") == validate(Cluster, {**given, "gpu": "B200"}, "b200.yaml")
    with pytest.raises(UserError, match=r"mine\.yaml: .*unknown gpu 'H900'; known: A100-40G, .*L40S"):
        validate(Cluster, {**given, "gpu": "H900"}, "mine.yaml")
    with pytest.raises(UserError, match="a cpu cluster has no GPUs; remove 'gpu'"):
        validate(Cluster, {**CPU, "gpu": "L40S"}, "mine.yaml")


@pytest.mark.parametrize("model", ["A100-40G", "A100-80G", "H100", "H200", "B200", "L40S"])
def test_every_data_centre_model_has_a_profile_of_eight(model):
    profile = load_cluster(f"8x{model}", PROFILES)
    assert (profile.gpu, profile.device, profile.world_size, profile.ranks_per_node) == (model, "cuda", 8, 8)
    assert {name: getattr(profile, name) for name in GPUS[model].figures()} == GPUS[model].figures()


def test_a_machine_of_known_gpus_has_their_bandwidths_and_reported_memory(installed, caplog):
    installed(H100, H100._replace(memory=78 * GIB), A100)
    cluster = this_machine("cuda", 4, 2)  # the third GPU is not used by two processes
    assert (cluster.gpu, cluster.hbm_gib) == ("H100", 78)
    assert cluster.hbm_gib_s == GPUS["H100"].hbm_gib_s
    assert cluster.bf16_tflops == GPUS["H100"].bf16_tflops
    assert not caplog.records


def test_an_unknown_gpu_is_named_with_the_way_out(installed, caplog):
    installed(NEW)
    cluster = this_machine("cuda", 1, 1)
    assert (cluster.gpu, cluster.hbm_gib, cluster.hbm_gib_s, cluster.bf16_tflops) == (None, 500, 897, None)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for word in ("'NVIDIA Z900'", "H100", "plan calibrate", "sharding.plan"):
        assert word in record.message


@pytest.mark.parametrize("gpus", [(H100, A100), (A100, H100)])
def test_different_gpus_count_as_the_smallest_and_slowest(installed, caplog, gpus):
    installed(H100)
    cluster = this_machine("cuda", 2, 1, gpus)
    assert (cluster.gpu, cluster.hbm_gib, cluster.hbm_gib_s) == (None, 39, GPUS["A100-40G"].hbm_gib_s)
    assert cluster.fp32_tflops == GPUS["A100-40G"].fp32_tflops
    [record] = caplog.records
    assert "NVIDIA A100-SXM4-40GB, NVIDIA H100 80GB HBM3" in record.message
    assert "smallest memory" in record.message


def test_what_is_unknown_is_no_faster_than_torchrecs_constants(caplog):
    cluster = this_machine("cuda", 2, 2, (H100, NEW))
    assert (cluster.hbm_gib, cluster.hbm_gib_s, cluster.fp32_tflops) == (79, 897, None)
    assert len(caplog.records) == 2


def test_host_memory_keeps_room_for_the_processes(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=200 * GIB))
    assert this_machine("cpu", 2, 2).ddr_gib == 100
    assert this_machine("cuda", 2, 2, (H100, H100)).ddr_gib == 85


class TwoNodes:
    """Rank 0 of two processes, each on a node of its own."""

    size, local_size = 2, 1
    device = torch.device("cuda", 0)

    def all_gather_object(self, value):
        return [value, A100]


def test_a_run_looks_at_the_gpus_of_all_its_ranks(installed):
    installed(H100)
    assert building.run_cluster(TwoNodes()).hbm_gib == 39
    alone = SimpleNamespace(size=1, local_size=1, device=torch.device("cpu"))
    assert building.run_cluster(alone) == this_machine("cpu", 1, 1)
