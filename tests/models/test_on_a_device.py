"""Every model's training and evaluation step on a device that is not the CPU: `meta` stands in for a GPU."""

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from tests.support.device import DEVICE, PROCESSES, Bf16, Device, NoLists
from tests.support.model_cases import CASES, built, case_schemas
from torchrec_xd.batch import Batch
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings
from torchrec_xd.models import MODELS
from torchrec_xd.models.model import Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.outputs import score_matrix
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings
from torchrec_xd.training.trainer import predict


@pytest.fixture(scope="module", params=[False, True], ids=["ids and numbers", "all kinds"])
def schemas(request, tmp_path_factory):
    """The schemas of the models, with and without the further kinds of features."""
    return case_schemas(tmp_path_factory.mktemp("data"), kinds=request.param)


@dataclass(frozen=True)
class Ready:
    """A model on the device, its schema, and a batch that still lies on the CPU."""

    spec: ModelSpec
    settings: Settings
    schema: Schema
    model: Model
    batch: Batch


@pytest.fixture(scope="module", params=CASES)
def ready(request, schemas):
    spec, settings, schema, model = built(CASES[request.param], schemas)
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=48), "train").batches()))
    return Ready(spec, settings, schema, model.to(DEVICE), batch)


def test_every_model_has_a_case():
    assert {case.model["name"] for case in CASES.values()} == set(MODELS)


@pytest.mark.filterwarnings("ignore:fbgemm..jagged_to_padded_dense")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_training_step_stays_on_the_device(ready, bf16):
    model, batch = ready.model, ready.batch.to(DEVICE)
    model.train()
    model.zero_grad()
    with NoLists(), Device() as device:
        with Bf16() if bf16 else ExitStack():
            output = model(batch)
            loss = output.total_loss()
        loss.backward()
    assert device.ran > 50
    assert device.copies == []
    assert device.unrepeatable == set()  # what trainer.deterministic promises
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: gradient for name, gradient in trained.items() if gradient is not None}
    # FBGEMM's padding of sequences has no gradient on `meta`.
    assert all(name.startswith("embeddings.sequences.") for name in trained.keys() - gradients.keys())
    for name, found in {"loss": loss, **output.score, **output.loss, **output.monitors, **gradients}.items():
        assert found.device == DEVICE, name
    assert {part.dtype for part in [loss, *output.loss.values()]} == {torch.float32}


def test_evaluation_copies_each_batch_from_the_device_once(ready):
    auxiliary = ready.spec.auxiliary_scores(ready.settings)
    evaluation = Evaluation(ready.schema, MetricSettings(), auxiliary)
    loader = Loader(ready.schema, LoaderSettings(batch_size=250), "train", extra=evaluation.extra)
    rows = []
    with NoLists(), Device(host=True) as device:
        for batch, output in predict(ready.model, loader, PROCESSES):
            assert {score.device for score in output.score.values()} == {DEVICE}
            evaluation.update(batch, score_matrix(ready.schema, batch, output, auxiliary))
            rows.append(len(batch))
    columns = len(ready.schema.tasks) + len(auxiliary)
    assert device.copies == [(count, columns) for count in rows]
    assert len(rows) > 1
    report = evaluation.compute(None)["eval"]
    assert len(report) == columns
    assert all(0 < result["positives"] < result["rows"] for result in report.values())


def test_what_only_metrics_read_stays_on_the_cpu(ready):
    moved = ready.batch.to(DEVICE)
    assert moved.bags.values().device == moved.dense_BN.device == moved.label_BT.device == DEVICE
    assert moved.user_B is ready.batch.user_B
    assert moved.extra_BK is ready.batch.extra_BK


@pytest.mark.parametrize(
    "faulty",
    [
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
        lambda x: x[x > 0],
        lambda x: 1.0 if x.sum() > 0 else 2.0,
        lambda x: x.sum().item(),
        lambda x: x + torch.ones(3).to(DEVICE),
    ],
)
def test_the_stand_in_refuses_what_a_gpu_would_wait_for(faulty):
    x = torch.ones(3, device=DEVICE)
    with NoLists(), Device():
        assert (x + 1).device == DEVICE
        with pytest.raises((AssertionError, RuntimeError)):
            faulty(x)


def test_the_stand_in_notes_what_a_gpu_cannot_repeat():
    with Device() as device:
        torch.ones(3, dtype=torch.int64, device=DEVICE).cumsum(0)
        torch.ones(3, device=DEVICE).softmax(0)
        assert device.unrepeatable == set()
        torch.ones(3, device=DEVICE).cumsum(0)
        functional.avg_pool3d(torch.ones(1, 2, 2, 2, device=DEVICE, requires_grad=True), 2).sum().backward()
        assert device.unrepeatable == {"aten::cumsum", "aten::avg_pool3d_backward"}
