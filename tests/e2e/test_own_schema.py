"""Base configs without a schema, trained on one that the command line names."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.cli.app import app
from torchrec_xd.config import load_config, load_run
from torchrec_xd.errors import UserError
from torchrec_xd.shipped import CONFIGS, config_file
from torchrec_xd.training.train_run import train

OWN = ("mkt_pretrain", "single", "shared_bottom", "mmoe", "ple", "star", "conet")
SMALL = ["trainer.threads=1", "trainer.epochs=1", "loader.batch_size=64"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A schema of one source and one target domain, and their files."""
    folder = tmp_path_factory.mktemp("shop")
    content = schema_at(write_feed(folder, rows=96))
    kept = ("items", "post")
    content["domains"] = {name: content["domains"][name] for name in kept}
    content["tasks"] = [task for task in content["tasks"] if task["domain"] in kept]
    content["features"] = [f for f in content["features"] if f["column"] != "tags"]
    (folder / "schema.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "schema.yaml"


@pytest.mark.parametrize("name", OWN)
def test_a_base_config_is_enough_for_an_ordinary_schema(shop, tmp_path, name):
    assign = [*SMALL, *(["domains=[post]"] if name == "single" else [])]
    content = train(load_config(CONFIGS / "base" / f"{name}.yaml", assign, shop), tmp_path / "run")
    assert content["split"] == "test"
    assert content["eval"]["click@post"]["rows"] == 48
    assert load_run(tmp_path / "run").model.name == name


def test_both_stages_of_mkt_by_their_shipped_names_from_anywhere(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for each in SMALL for part in ("--set", each)]
    common = ["--schema", str(shop), *sets, "--run-dir"]
    target = ["--set", "domains=[post]", "--set", "init_from=runs/pretrain"]
    for arguments in (
        ["train", "configs/base/mkt_pretrain.yaml", *common, "runs/pretrain"],
        ["train", "base/mkt_finetune", *common, "runs/finetune", *target],
    ):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    metrics = json.loads((tmp_path / "runs" / "finetune" / "metrics.json").read_text())
    assert list(metrics["eval"]) == ["click@post"]


def test_a_run_without_a_schema_is_told_how_to_name_one(tmp_path):
    path = CONFIGS / "base" / "mmoe.yaml"
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: a run needs a schema: name it in the config (schema: FILE) or by --schema FILE"
    with pytest.raises(UserError, match="a run needs a schema"):
        load_config(path, ["schema=shop.yaml"])
    found = CliRunner().invoke(app, ["train", "base/mmoe", "--run-dir", str(tmp_path / "run")])
    assert found.exit_code
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_there_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("configs/base/mmoe.yaml")
    assert config_file(name) == config_file(Path("base/mmoe")) == CONFIGS / "base" / "mmoe.yaml"
    name.parent.mkdir(parents=True)
    name.touch()
    assert config_file(name) == name
    assert config_file(Path("no_such.yaml")) == Path("no_such.yaml")
