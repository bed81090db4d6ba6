"""What version 0.1.0 wrote can still be used: a run folder of MKT's first stage, trained on the small feed."""

import json
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support import placements
from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE
from tests.support.small_models import train_run
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import evaluate, score
from torchrec_xd.training.train_run import train


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The run folder, in a working directory from which its data are found."""
    monkeypatch.chdir(tmp_path)
    write_feed(Path("feed"))
    with tarfile.open(Path(__file__).parent / "support" / "run_of_0_1_0.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "pretrain"


def test_it_is_measured_as_it_was(old_run):
    written = json.loads((old_run / "metrics.json").read_text())
    assert evaluate(old_run, "test", "last")["eval"]["click@post"] == pytest.approx(
        written["eval"]["click@post"], rel=1e-4
    )


def test_it_scores(old_run, tmp_path):
    assert score(old_run, None, tmp_path / "scores.parquet", "post", "best") == 200


def test_the_second_stage_starts_from_it(old_run, tmp_path):
    content = {
        "schema": schema_at(Path("feed")),
        "model": FINETUNE,
        "domains": ["post"],
        "init_from": str(old_run),
        "loader": {"batch_size": 128},
    }
    train(validate(RunConfig, content, "stage 2"), tmp_path / "finetune")
    loaded = json.loads((tmp_path / "finetune" / "transfer.json").read_text())["loaded"]
    assert "teacher.net.common.ple.last.gates.m_post.linear.weight" in loaded


def test_exits_settings_of_then_are_those_of_now(tmp_path):
    """What `transfer_on` was called then; `transfer_error` and `scene_to_towers` were not there."""
    run = train_run(
        tmp_path,
        "exit",
        schema=placements.schema_at(placements.write_placements(tmp_path)),
        domains=["home"],
        model={"name": "exit", **placements.SETTINGS, "transfer_on": "transfer"},
        loader={"batch_size": 64},
        trainer={"threads": 1},
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"].pop("transfer_on") == "transfer"
    for name in ("transfer_error", "scene_to_towers"):
        del config["model"][name]
    config["model"]["transfer_loss"] = "transfer"
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert load_run(run).model.transfer_on == "transfer"
    written = json.loads((run / "metrics.json").read_text())["eval"]
    assert evaluate(run, "test", "last")["eval"]["click@home"] == pytest.approx(written["click@home"])
