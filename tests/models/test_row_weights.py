"""Row weights: the loss of every model is that of the natural distribution, of which rows were sampled."""

from dataclasses import replace

import pytest
import torch

from tests.support.feeds import histories_at, write_feed, write_histories
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.placements import SETTINGS, write_placements
from tests.support.placements import schema_at as placements_at
from tests.support.small_models import EMBEDDINGS, JOINT, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.models import MODELS
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

SEQUENCES = {"items": ["hist"], "video": ["watched"], "post": ["seen"]}
EXIT = {**SETTINGS, "sources": {**SETTINGS["sources"]}}
EXIT["sources"]["search"] = {**SETTINGS["sources"]["search"], "own": "click@search"}
ONE, SOURCE = {"widths": [8, 6]}, {"single": {"widths": [8, 6]}, "mkt_pretrain": PRETRAIN}
TOWERS = {"aligned_dim": 8, "tower_widths": [4]}
SMALL = {
    **{name: {**TOWERS, **own} for name, own in JOINT.items()},
    "minet": {**TOWERS, "widths": [8], "sequences": SEQUENCES},
    "single": ONE,
    "fibinet": ONE,
    "ctnet": ONE,
    "mkt_pretrain": PRETRAIN,
    "mkt_finetune": FINETUNE,
    "exit": EXIT,
    "exit transfer": {**EXIT, "transfer_loss": "transfer"},
    "exit without icl": {**EXIT, "icl": False},
}
ONE_DOMAIN = ("single", "fibinet", "ctnet", "mkt_finetune")


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    folder = write_histories(write_feed(tmp_path_factory.mktemp("feed"), rows=64))
    return Schema.model_validate(histories_at(folder))


@pytest.fixture(scope="module")
def placements(tmp_path_factory):
    return Schema.model_validate(placements_at(write_placements(tmp_path_factory.mktemp("home"), rows=64)))


def built(schema, key):
    """A model, and the schema of its batches."""
    name, settings = key.split()[0], SMALL[key]
    own = schema.only(("post",)) if name in ONE_DOMAIN else schema
    transfer, further = MODELS[name].transfer, ()
    if transfer is not None and transfer.required:
        there = schema if transfer.source == "mkt_pretrain" else schema.only(("items",))
        further = (SourceRun(there, settings_of(**{"name": transfer.source, **SOURCE[transfer.source]}), EMBEDDINGS),)
    torch.manual_seed(0)
    model = MODELS[name].build(own, settings_of(**{**settings, "name": name}), EMBEDDINGS, 0, *further)
    return materialise(model).eval(), own


def test_every_model_is_here():
    assert {key.split()[0] for key in SMALL} == set(MODELS)


@pytest.mark.parametrize("key", SMALL)
def test_a_row_counts_in_the_loss_as_often_as_its_weight_says(feed, placements, key):
    """The loss is linear in the weights, a row of weight 0 teaches nothing, and what is no error of a row has none."""
    model, schema = built(placements if key.startswith("exit") else feed, key)
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=64), "train").batches()))
    labels = batch.label_BT.nan_to_num().clone()

    def loss(weight_B, flipped=None):
        label_BT = batch.label_BT if flipped is None else torch.where(flipped[:, None], 1 - labels, labels)
        label_BT = torch.where(batch.label_BT.isnan(), batch.label_BT, label_BT)
        parts = dict(model(replace(batch, weight_B=weight_B, label_BT=label_BT)).loss)
        parts.pop("pdl", None)  # holds vectors apart, whatever the labels
        return torch.stack(list(parts.values())).sum().item()

    ones, some = torch.ones(len(batch)), (torch.arange(len(batch)) % 3 == 0)
    assert loss(5 * ones) == pytest.approx(5 * loss(ones), rel=1e-4)
    mixed = torch.where(some, 146.0, 1.0)
    assert loss(mixed) == pytest.approx(loss(ones) + 145 * loss(some.float()), rel=1e-4)
    assert loss(some.float(), flipped=~some) == pytest.approx(loss(some.float()), rel=1e-6)
    assert loss(some.float(), flipped=some) != pytest.approx(loss(some.float()), rel=1e-3)
