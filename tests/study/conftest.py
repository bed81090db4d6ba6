"""A study of four models and two seeds on a small feed, trained once."""

import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from torchrec_xd.study.comparison import run_study
from torchrec_xd.study.design import load_study

CONFIGS = {
    "single": {"model": {"name": "single", "widths": [8, 4]}, "domains": ["post"]},
    "bottom": {"model": {"name": "shared_bottom", "widths": [8], "tower_widths": [4], "aligned_dim": 4}},
    "stage1": {"model": PRETRAIN},
    "stage2": {
        "model": FINETUNE,
        "domains": ["post"],
        "init_from": "somewhere/else",
    },
}
STUDY = {
    "reference": "single",
    "seeds": 2,
    "samples": 400,
    "data": {"feed": {"task": "click@post"}},
    "models": {
        "mkt": {"config": "stage2.yaml", "parent": "stage1"},
        "single": {"config": "single.yaml"},
        "bottom": {"config": "bottom.yaml", "set": ["optimizer.dense.lr=0.02"]},
        "stage1": {"config": "stage1.yaml", "shown": False},
    },
    "space": {"optimizer.dense.lr": {"low": 0.001, "high": 0.1, "log": True}, "model.dropout": {"choices": [0.0, 0.5]}},
}


def write_study(folder, change=None, name="study", schema=None):
    """The study and its configs; the feed is in `folder/feed`, its schema may be changed."""
    for config, content in CONFIGS.items():
        common = {
            "schema": {**schema_at(folder / "feed"), **(schema or {})},
            "loader": {"batch_size": 128},
            "optimizer": {"tables": {"lr": 0.2}, "dense": {"lr": 0.01}},
        }
        (folder / f"{config}.yaml").write_text(yaml.safe_dump({**common, **content}, sort_keys=False))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **(change or {})}, sort_keys=False))
    return path


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    """The study's file; its runs are in `out` beside it."""
    folder = tmp_path_factory.mktemp("lab")
    write_feed(folder / "feed")
    path = write_study(folder)
    assert run_study(load_study(path), path, folder / "out", workers=2) == {}
    return path
