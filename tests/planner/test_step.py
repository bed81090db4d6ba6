"""The whole step: what its dense part does, counted on the meta device, and how long every part takes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support import placements
from tests.support.feeds import schema_at, write_feed
from tests.support.small_models import EMBEDDINGS, JOINT, settings_of
from torchrec_xd.batch import READ_BY_MODELS
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.phases import PhaseSettings
from torchrec_xd.models import MODELS
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.planner.step.counting import count_dense, longest_phase, meta_batch
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return Schema.model_validate(schema_at(write_feed(tmp_path_factory.mktemp("feed"))))


@pytest.fixture(scope="module")
def homepage(tmp_path_factory):
    return Schema.model_validate(
        placements.schema_at(placements.write_placements(tmp_path_factory.mktemp("placements")))
    )


class Mlp(nn.Module):
    """Two layers on the first dense columns, and a loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

    def forward(self, batch):
        loss = self.layers(batch.dense_BN).sum()
        return SimpleNamespace(total_loss=lambda: loss)


def dense_schema(columns):
    return Schema.model_validate(
        {
            "name": "dense",
            "user": "user",
            "domains": {"one": {"role": "target", "train": "one"}},
            "tasks": [{"label": "click", "domain": "one"}],
            "features": [
                {"column": "item", "kind": "id", "group": "shared", "rows": 9},
                *({"column": f"d{i}", "kind": "dense", "group": "context"} for i in range(columns)),
            ],
        }
    )


def test_a_two_layer_net_by_hand():
    model = Mlp()
    work = count_dense(model, meta_batch(dense_schema(4), 8, {}))
    # Forward: 8 rows through 4 x 3, then 3 x 1. Backward: both again for the weights; for the inputs only the second
    # layer, as the batch wants no gradient.
    assert [o.flops for o in work.forward if o.flops] == [2 * 8 * 4 * 3, 2 * 8 * 3]
    assert sum(o.flops for o in work.backward) == 2 * 8 * 3 + 2 * 8 * 3 + 2 * 8 * 4 * 3
    # addmm: bias, input, weight, output; relu: in, out; addmm; sum: in, out. All of 4 bytes.
    assert [(o.name, o.bytes) for o in work.forward] == [
        ("aten::addmm", 4 * (3 + 32 + 12 + 24)),
        ("aten::relu", 4 * (24 + 24)),
        ("aten::addmm", 4 * (1 + 24 + 3 + 8)),
        ("aten::sum", 4 * (8 + 1)),
    ]
    # AdamW reads 4 and writes 3 numbers for each of 19 weights.
    assert work.optimizer.bytes == 7 * 4 * 19
    assert work.gradient_bytes == 4 * 19
    # An id of 8 bytes and its length of 4; 4 dense columns, label and weight of 4 each.
    assert work.id_bytes == 8 * 12
    assert work.batch_bytes == 8 * (12 + 16 + 4 + 4)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_bytes_of_expanded_tensors_are_those_in_memory():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, batch):
            loss = (self.weight.expand(1000) * 2).sum()
            return SimpleNamespace(total_loss=lambda: loss)

    work = count_dense(Wide(), meta_batch(dense_schema(1), 4, {}))
    assert work.forward[0].name == "aten::mul"
    assert work.forward[0].bytes == 4 * (1 + 1000)


def test_the_batch_is_shaped_as_the_loader_makes_it(feed):
    real = next(iter(Loader(feed, LoaderSettings(batch_size=60), "train").batches()))
    made = meta_batch(feed, len(real), {}, {"post": 2.0})
    for name in ("dense_BN", "label_BT", "weight_B", "user_B", "extra_BK"):
        assert (getattr(made, name).shape, getattr(made, name).dtype) == (
            getattr(real, name).shape,
            getattr(real, name).dtype,
        )
        assert getattr(made, name).device.type == ("meta" if name in READ_BY_MODELS else "cpu")
    for name in ("bags", "sequences"):
        ids, own = getattr(made, name), getattr(real, name)
        assert (ids.keys(), ids.stride()) == (own.keys(), own.stride())
        assert (ids.values().dtype, ids.lengths().dtype) == (own.values().dtype, own.lengths().dtype)


def test_rows_are_shared_by_the_domains(feed):
    assert list(feed.domains) == ["items", "video", "post"]
    assert meta_batch(feed, 60, {}).offsets == (0, 20, 40, 60)
    assert meta_batch(feed, 60, {}, {"post": 2.0}).offsets == (0, 15, 30, 60)


def test_ids_follow_the_pooling(feed):
    key = feed.tables()[0].features[0].column
    few, many = meta_batch(feed, 10, {key: 1.0}), meta_batch(feed, 10, {key: 4.5})
    ids = [len(batch.bags.values()) + len(batch.sequences.values()) for batch in (few, many)]
    assert ids[1] - ids[0] == 35


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_counted(name, feed, homepage):
    schema, model = model_of(name, feed, homepage)
    one, two = (count_dense(model, meta_batch(schema, rows, {})) for rows in (32, 64))
    assert one.flops > 0
    assert two.flops == pytest.approx(2 * one.flops, rel=0.1)
    assert len(two.operators) == len(one.operators)
    assert one.bytes < two.bytes < 2 * one.bytes
    dense = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "embedding" not in n)
    assert one.gradient_bytes >= 4 * dense > 0


def model_of(name, feed, homepage):
    """A small model and the schema of its batches."""
    if name == "exit":
        search = {**placements.SETTINGS["sources"]["search"], "own": "click@search"}
        sources = {**placements.SETTINGS["sources"], "search": search}
        settings = settings_of(name, **{**placements.SETTINGS, "sources": sources})
        return homepage, MODELS[name].build(homepage, settings, EMBEDDINGS, 0)
    if name in ("single", "fibinet"):
        schema = only_post(feed)
        return schema, MODELS[name].build(schema, settings_of(name), EMBEDDINGS, 0)
    if name in JOINT:
        settings = settings_of(name, aligned_dim=8, tower_widths=[4], **JOINT[name])
        return feed, MODELS[name].build(feed, settings, EMBEDDINGS, 0)
    if name == "minet":
        # A history of each domain, against an id that its rows carry.
        content = feed.model_dump(mode="json", by_alias=True)
        for column, table, rows in (("watched", "clip", 9), ("seen", "style", 5)):
            shape = {"kind": "sequence", "group": "sequence", "rows": rows, "length": 4}
            content["features"].append({"column": column, "table": table, **shape})
        schema = Schema.model_validate(content)
        settings = settings_of(name, sequences={"items": ["hist"], "video": ["watched"], "post": ["seen"]})
        return schema, MODELS[name].build(schema, settings, EMBEDDINGS, 0)
    if name in ("mkt_finetune", "ctnet"):
        source = MODELS[name].transfer.source
        taught = only_post(feed) if source == "single" else feed
        run = SourceRun(taught, settings_of(source), EMBEDDINGS)
        return only_post(feed), MODELS[name].build(only_post(feed), settings_of(name), EMBEDDINGS, 0, run)
    return feed, MODELS[name].build(feed, settings_of(name), EMBEDDINGS, 0)


def only_post(feed):
    content = feed.model_dump(mode="json", by_alias=True)
    return validate(RunConfig, {"schema": content, "model": {"name": "single"}, "domains": ["post"]}, "t").schema_in_use


@pytest.mark.parametrize(
    ("curriculum", "epochs", "offsets", "said"),
    [
        ([], 2, (0, 40, 80, 120), ""),
        ([("sources", 1)], 2, (0, 40, 80, 120), "one of the 1 of 2 epochs after loader.curriculum"),
        ([("sources", 1)], 1, (0, 60, 120, 120), "1 of 1 epochs, of items, video"),
        ([("sources", 1), ({"post": 3, "items": 1}, 3)], 5, (0, 30, 30, 120), "3 of 5 epochs, of items, post"),
    ],
)
def test_a_step_of_the_longest_phase_of_a_curriculum_is_estimated(feed, homepage, curriculum, epochs, offsets, said):
    phases = [PhaseSettings(shares=shares, epochs=length) for shares, length in curriculum]
    shares, words = longest_phase(feed, None, phases, epochs)
    batch = meta_batch(feed, 120, {}, shares)
    assert batch.offsets == offsets
    assert (said in words) if said else words == ""
    _, model = model_of("ple", feed, homepage)
    assert count_dense(model, batch).flops > 0


def test_without_a_curriculum_mixing_stays(feed):
    assert longest_phase(feed, {"post": 2.0}, [], 3) == ({"post": 2.0}, "")
