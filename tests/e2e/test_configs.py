"""Every shipped run config is run, on data sets prepared from a small raw one."""

from pathlib import Path

import pytest

from tests.support.raw_journey import varied, write_raw
from torchrec_xd.config import load_config
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.training.train_run import train

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    raw = write_raw(varied(0), folder / "raw")
    for name in ("cj_feed", "cj_departments", "cj_placement"):
        prepare(name, folder / name, PrepareSettings(threads=1, negatives=1), lambda line: None, raw=raw)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Trains a config once, after the one that its `init_from: runs/NAME` names."""
    runs, made = tmp_path_factory.mktemp("runs"), {}

    def run_once(name):
        if name not in made:
            path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
            config = load_config(path)
            assign = [f"schema.root={data / config.data_schema.name}", "trainer.epochs=1", "trainer.threads=1"]
            if config.init_from is not None:
                run_once(config.init_from.name)
                assign.append(f"init_from={runs / config.init_from.name}")
            made[name] = train(load_config(path, assign), runs / name)
        return made[name]

    return run_once


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_runs(run, name):
    metrics = run(name)
    assert metrics["train"]["rows"] > 0
    assert all(result["rows"] > 0 for result in metrics["eval"].values())


def test_there_are_configs():
    assert {"mkt_cj_pretrain", "mkt_cj_finetune", "single_cj"} <= set(NAMES)
