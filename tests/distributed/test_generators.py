"""Random generators in checkpoints: torch.cuda is replaced where it is called, so nothing here needs a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.sharded import sharded_pretrain
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings, read_saved, write_saved
from torchrec_xd.distributed.lookups import lookups_of
from torchrec_xd.distributed.process_group import seed_generators

CPU, GPU = torch.device("cpu"), torch.device("cuda", 3)


class FakeGenerator:
    """A GPU's generator: 16 bytes, all of them its seed at first; the first one counts what is drawn."""

    def __init__(self) -> None:
        self.state, self.asked = torch.zeros(16, dtype=torch.uint8), []

    def get(self, device):
        self.asked.append(device)
        return self.state.clone()

    def set(self, state, device):
        self.asked.append(device)
        self.state = state.clone()

    def seed(self, seed):
        self.state = torch.full((16,), seed % 251, dtype=torch.uint8)

    def draw(self):
        self.state[0] += 1


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGenerator()
    monkeypatch.setattr(torch.cuda, "get_rng_state", fake.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", fake.set)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", fake.seed)
    return fake


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with sharded_pretrain(tmp_path_factory.mktemp("feed")) as found:
        yield found


def checkpoints_at(folder, trained, device):
    _, _, schema, processes = trained
    return Checkpoints(folder, CheckpointSettings(), replace(processes, device=device), schema.fingerprint())


def seeded(*key) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of fresh generators of CPU and GPU."""
    fake, before = FakeGenerator(), torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", fake.seed)
        seed_generators(*key)
    cpu = torch.get_rng_state()
    torch.set_rng_state(before)
    return cpu, fake.state


def write_and_resume(tmp_path, trained, gpu, writes, resumes):
    """Messages, and the states of CPU and GPU when it was written, after a resume on another device or the same."""
    model, optimizers, *_ = trained
    torch.manual_seed(11)
    torch.rand(5)
    gpu.state = torch.arange(100, 116, dtype=torch.uint8)
    cpu_before, gpu_before = torch.get_rng_state(), gpu.state.clone()
    checkpoints_at(tmp_path, trained, writes).save(model, optimizers, LoaderState(0, 3), 3, None)
    torch.manual_seed(12)
    said = []
    checkpoints_at(tmp_path, trained, resumes).resume(model, optimizers, said.append)
    return said, cpu_before, gpu_before


def test_the_generator_of_the_ranks_own_gpu_comes_back_byte_by_byte(tmp_path, trained, gpu):
    said, cpu_before, gpu_before = write_and_resume(tmp_path, trained, gpu, GPU, GPU)
    assert said == []
    assert torch.equal(gpu.state, gpu_before)
    assert torch.equal(torch.get_rng_state(), cpu_before)
    assert set(gpu.asked) == {GPU}


def test_a_cpus_checkpoint_goes_on_on_a_gpu_whose_generator_starts_anew(tmp_path, trained, gpu):
    said, cpu_before, _ = write_and_resume(tmp_path, trained, gpu, CPU, GPU)
    assert torch.equal(gpu.state, seeded(12, 3, 0)[1])
    assert torch.equal(torch.get_rng_state(), cpu_before)
    [line] = said
    assert line.startswith("the checkpoint of step 3 holds no random generator of a GPU")
    assert "starts anew, from seed, step and rank" in line


def test_a_gpus_checkpoint_goes_on_on_a_cpu(tmp_path, trained, gpu):
    said, cpu_before, _ = write_and_resume(tmp_path, trained, gpu, GPU, CPU)
    assert torch.equal(torch.get_rng_state(), cpu_before)
    [line] = said
    assert line.startswith("the checkpoint of step 3 was written on a GPU")


def test_on_cpus_alone_nothing_is_asked_of_a_gpu_and_nothing_said(tmp_path, trained, gpu):
    said, cpu_before, _ = write_and_resume(tmp_path, trained, gpu, CPU, CPU)
    assert (said, gpu.asked) == ([], [])
    assert torch.equal(torch.get_rng_state(), cpu_before)


def test_with_another_number_of_processes_both_start_anew(tmp_path, trained, gpu):
    model, optimizers, *_ = trained
    checkpoints = checkpoints_at(tmp_path, trained, GPU)
    checkpoints.save(model, optimizers, LoaderState(0, 3), 3, None)
    folder = checkpoints.last()
    write_saved(folder, replace(read_saved(folder), world_size=2))
    torch.manual_seed(12)
    said = []
    checkpoints.resume(model, optimizers, said.append)
    cpu, its_gpu = seeded(12, 3, 0)
    assert torch.equal(torch.get_rng_state(), cpu)
    assert torch.equal(gpu.state, its_gpu)
    assert said == []


def test_what_is_drawn_while_cached_rows_are_written_back_counts(tmp_path, trained, gpu, monkeypatch):
    """FBGEMM rounds stochastically then; a resumed run goes on from the state after that."""
    model, optimizers, *_ = trained
    for lookup, _ in lookups_of(model):
        monkeypatch.setattr(lookup, "flush", gpu.draw)
    checkpoints = checkpoints_at(tmp_path, trained, GPU)
    checkpoints.save(model, optimizers, LoaderState(0, 3), 3, None)
    after = gpu.state.clone()
    assert after[0] > 0
    checkpoints.resume(model, optimizers)
    assert torch.equal(gpu.state, after)
