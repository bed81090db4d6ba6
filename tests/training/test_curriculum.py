"""Every joint model trains where a domain gives no rows in a whole epoch, and goes on exactly where it was stopped."""

import json

import pytest

from tests.support.feeds import histories_at, write_feed, write_histories
from tests.support.mkt_settings import PRETRAIN
from tests.support.small_models import JOINT, weights
from tests.support.stops import train_until
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training.train_run import train

TOWERS = {"aligned_dim": 8, "tower_widths": [4]}
SEQUENCES = {"items": ["hist"], "video": ["watched"], "post": ["seen"]}
MODELS = {
    **{name: {"name": name, **TOWERS, **own} for name, own in JOINT.items()},
    "minet": {"name": "minet", **TOWERS, "widths": [8], "sequences": SEQUENCES},
    "mkt_pretrain": PRETRAIN,
    "mkt_pretrain, star": {**PRETRAIN, "extractor": "star"},
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return histories_at(write_histories(write_feed(tmp_path_factory.mktemp("feed"), rows=64)))


def config_of(schema, model, **content):
    return validate(
        RunConfig,
        {
            "schema": schema,
            "model": model,
            "loader": {"batch_size": 64, "curriculum": [{"shares": {"items": 1, "video": 1}}]},
            "trainer": {"epochs": 2, "log_every": 1, "threads": 1},
            "checkpoint": {"keep": 9},
            **content,
        },
        "test",
    )


def losses(run, epoch):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["bce/click@post"] for line in lines if line.get("epoch") == epoch]


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_epoch_without_the_target(schema, tmp_path, monkeypatch, name):
    config = config_of(schema, MODELS[name])
    train(config, tmp_path / "whole")
    first, second = losses(tmp_path / "whole", 0), losses(tmp_path / "whole", 1)
    assert set(first) == {0.0}
    assert len(first) == len(second)
    assert all(loss > 0 for loss in second)
    train_until(len(first), monkeypatch, config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    here, there = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(here[key].equal(there[key]) for key in there)


def test_phases_that_last_longer_than_training(schema):
    curriculum = [{"epochs": 2, "shares": {"items": 1}}, {"shares": {"video": 1}}]
    with pytest.raises(UserError, match=r"loader\.curriculum: its phases last 3 epochs, trainer\.epochs is 2; shorten"):
        config_of(schema, PRETRAIN, loader={"curriculum": curriculum})


def test_domains_of_the_run_alone_may_be_named(schema, tmp_path):
    config = config_of(schema, PRETRAIN, domains=["items", "post"])
    with pytest.raises(UserError, match="curriculum: unknown domain 'video'; the domains of this run are: items, post"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
