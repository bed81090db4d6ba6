"""The trainer's clock and its precision."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.batches import batch_of
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.models.model import Model
from torchrec_xd.outputs import Output, Predictions
from torchrec_xd.training import trainer
from torchrec_xd.training.trainer import Stopwatch, TrainerSettings, Training, train_step


def test_the_clock_of_steps_leaves_out_validation_and_checkpoints(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 113.0, 117.0, 127.0])
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    clock = Stopwatch(100)
    assert clock.median() is None
    # From 10 to 12: four steps of half a second.
    assert clock.lap(rows=40, step=104) == 20
    # From 12 to 117, stopped from 13 to 113: five seconds for two steps.
    with clock.stopped():
        pass
    assert clock.lap(rows=50, step=106) == 2
    # From 117 to 127: ten seconds for ten steps.
    assert clock.lap(rows=60, step=116) == 1
    assert clock.laps == [0.5, 2.5, 1.0]
    assert clock.median() == 1.0


CPU = Processes(rank=0, size=1, local_size=1, device=torch.device("cpu"), group=None, threads=1)


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({}, False), ({"avx512_f": True}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)],
)
def test_auto_takes_bf16_where_the_cpu_has_hardware_for_it(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    bf16 = {name: Training(None, None, TrainerSettings(precision=name), CPU).bf16 for name in ("fp32", "bf16", "auto")}
    assert bf16 == {"fp32": False, "bf16": True, "auto": fast}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "2 x GPU: matrix products in TF32, batches read ahead, no deterministic algorithms"),
        (
            {"tf32": False, "pipeline": False, "deterministic": True},
            "2 x GPU: matrix products in fp32, batches not read ahead, deterministic algorithms",
        ),
        ({"precision": "bf16"}, "2 x GPU: matrix products in bf16, batches read ahead, no deterministic algorithms"),
    ],
)
def test_how_a_gpu_trains_is_said(monkeypatch, settings, said):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    two = replace(CPU, size=2, device=torch.device("cuda", 0))
    assert Training(None, None, TrainerSettings(**settings), two).how == said
    assert Training(None, None, TrainerSettings(**settings), CPU).how == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_dense_part_runs_in_the_chosen_precision(precision):
    """Seen by the model itself, forward alone: weights, gradients and the loss stay fp32."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
            self.seen = []

        def forward(self, batch):
            out = self.linear(batch.weight_B.expand(2, 4))
            self.seen.append(out.dtype)
            return Output({}, {"loss": out.float().sum()}, {})

    class Rows:
        weight_B = torch.ones(1)

        def to(self, device, non_blocking):
            return self

    class NoOptimizers:
        def zero_grad(self):
            pass

        def step(self):
            pass

    model = Model()
    step = train_step(Training(model, NoOptimizers(), TrainerSettings(precision=precision, weighted=True), CPU), Rows())
    assert model.seen == [torch.bfloat16 if precision == "bf16" else torch.float32]
    assert step.loss.dtype == model.linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("given", "kept"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
@pytest.mark.parametrize("command", ["torchrec_xd.cli", "torchrec_xd.benchmark"])
def test_commands_tell_threads_how_long_to_spin_before_torch_is_there(command, given, kept):
    """What OpenMP reads when torch is imported: seen by an import hook in a command that imports torch."""
    code = (
        "import os, runpy, sys; seen = []; hook = type('Hook', (), {'find_spec': lambda self, name, path, target=None: "
        "seen.append(os.environ.get('GOMP_SPINCOUNT')) if name == 'torch' else None}); "
        "sys.meta_path.insert(0, hook()); import atexit; atexit.register(lambda: print(seen[0])); "
        f"sys.argv = [{command!r}, *{['evaluate', 'nowhere'] if command.endswith('cli') else ['--help']}]; "
        f"runpy.run_module({command!r}, run_name='__main__', alter_sys=True)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.stdout.split()[-1] == kept


def test_importing_the_package_changes_nothing():
    code = (
        "import os, sys; before = dict(os.environ); import torchrec_xd, torchrec_xd.training.train_run; "
        "assert dict(os.environ) == before; print('same')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == "same"


def test_predicting_asks_for_no_loss_with_rows_or_without():
    class Net(nn.Module):
        def forward(self, batch):
            seen.append(len(batch))
            return Predictions({}, {"click@a": batch.label_BT[:, 0]})

    def refuse(predictions, batch):
        raise AssertionError("labels may be unknown: there is no loss")

    seen = []
    rows = batch_of((0, 3, 3), [1.0, 0.0, 1.0])
    loader = SimpleNamespace(batches=lambda **_: (batch for batch in (rows, batch_of((0, 0, 0), []))))
    model = Model(nn.Identity(), Net(), refuse)
    [(batch, output)] = trainer.predict(model, loader, SimpleNamespace(device=torch.device("cpu")))
    assert len(batch) == 3
    assert output.score["click@a"].tolist() == [1.0, 0.0, 1.0]
    assert output.loss == {}
    assert seen == [3, 1]
    assert not model.training
