"""Every model's training and evaluation step on a device that is not the CPU: `meta` stands in for a GPU."""

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from tests.support import placements
from tests.support.device import DEVICE, PROCESSES, Bf16, Device, NoLists
from tests.support.feeds import histories_at, schema_at, write_feed, write_histories
from tests.support.kinds import with_kinds, write_kinds
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.small_models import EMBEDDINGS, JOINT, settings_of
from torchrec_xd.batch import Batch
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings
from torchrec_xd.models import MODELS
from torchrec_xd.models.model import Model
from torchrec_xd.models.spec import ModelSpec
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.outputs import score_matrix
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings
from torchrec_xd.training.trainer import predict

SINGLE = {"name": "single", "widths": [6, 5], "aligned_dim": 3}
SEARCH = {**placements.SETTINGS["sources"]["search"], "own": "click@search"}
EXIT = {
    "name": "exit",
    **placements.SETTINGS,
    "sources": {**placements.SETTINGS["sources"], "search": SEARCH},
}
HISTORIES = {"items": ["hist"], "video": ["watched"], "post": ["seen"]}


@dataclass(frozen=True)
class Case:
    """A model, the domains that it reads, and the run that it starts from."""

    model: dict
    domains: tuple[str, ...] | None = None
    source: dict | None = None
    source_domains: tuple[str, ...] | None = None


CASES = {
    "mkt_pretrain": Case(PRETRAIN),
    "mkt_pretrain, 2 levels, dropout": Case({**PRETRAIN, "levels": 2, "dropout": 0.1}),
    "mkt_pretrain, no HFA": Case({**PRETRAIN, "hfa": False, "sequence_pooling": "mean"}),
    "mkt_finetune": Case(FINETUNE, ("post",), PRETRAIN),
    "mkt_finetune, dynamic": Case({**FINETUNE, "gates": "dynamic"}, ("post",), PRETRAIN),
    "exit": Case(EXIT),
    "exit, transfer": Case({**EXIT, "transfer_on": "transfer", "ssn": False}),
    "exit, cross entropy, scenes": Case(
        {**EXIT, "transfer_on": "transfer", "transfer_error": "cross_entropy", "scene_to_towers": True}
    ),
    "exit, no ICL": Case({**EXIT, "icl": False}),
    "single": Case({"name": "single", "widths": [6, 5]}, ("post",)),
    "single, going on": Case(SINGLE, ("post",), SINGLE, ("items",)),
    **{name: Case({"name": name, "aligned_dim": 8, "tower_widths": [4], **own}) for name, own in JOINT.items()},
    "minet": Case({"name": "minet", "aligned_dim": 8, "tower_widths": [4], "widths": [8], "sequences": HISTORIES}),
    "ctnet": Case({"name": "ctnet", "widths": [7, 6]}, ("post",), {"name": "single", "widths": [6, 5]}, ("items",)),
    **{
        f"fibinet, {kernel}": Case({"name": "fibinet", "widths": [8], "bilinear": kernel}, ("post",))
        for kernel in ("all", "each", "interaction")
    },
}


@pytest.fixture(scope="module", params=[False, True], ids=["ids and numbers", "all kinds"])
def schemas(request, tmp_path_factory):
    """The schemas of the models, with and without the further kinds of features."""
    folder = tmp_path_factory.mktemp("data")
    home = placements.schema_at(placements.write_placements(folder / "home"))
    feed = write_histories(write_feed(folder / "feed"))
    every = (home, histories_at(feed), schema_at(feed))
    if request.param:
        write_kinds(folder)
        every = (with_kinds(home), *(with_kinds(one, specific="post") for one in every[1:]))
    return dict(zip(("exit", "minet", "others"), map(Schema.model_validate, every), strict=True))


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
    case = CASES[request.param]
    whole = schemas.get(case.model["name"], schemas["others"])
    schema = whole if case.domains is None else whole.only(case.domains)
    source = []
    if case.source is not None:
        taught = whole if case.source_domains is None else whole.only(case.source_domains)
        source = [SourceRun(taught, settings_of(**case.source), EMBEDDINGS)]
    own = case.model
    if "sequences" in own and "past" in schema.sequences():
        own = {**own, "sequences": {**HISTORIES, "items": ["hist", "past"]}}
    spec, settings = MODELS[own["name"]], settings_of(**own)
    model = spec.build(schema, settings, EMBEDDINGS, 0, *source)
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
