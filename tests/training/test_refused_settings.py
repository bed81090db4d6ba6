"""Settings that no run can have: told before its folder is made, with exit code 2."""

import copy

import pytest
import yaml

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError
from torchrec_xd.settings import override, validate
from torchrec_xd.training.building import build_sharded
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return {
        "schema": schema_at(write_feed(tmp_path_factory.mktemp("refused") / "feed", rows=64)),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "trainer": {"threads": 1},
    }


CASES = {
    "optimizer.tables.name=adam": "FBGEMM has it on GPUs only; on CPU take one of: rowwise_adagrad, adagrad, sgd",
    "optimizer.tables.stochastic_rounding=true": r"GPUs only; leave it out; .*embeddings.dtype=fp32",
    "embeddings.init_std=-1": "'embeddings.init_std': Input should be greater than or equal to 0",
    "optimizer.dense.betas=[1.5, 2]": r"'optimizer.dense.betas.0': Input should be less than 1",
    "seed=12345678901234567890123": "'seed' holds a number beyond 64 bits",
    "optimizer.dense.lr=.inf": "'optimizer.dense.lr': Input should be a finite number",
    "optimizer.tables.lr=1e300": "'optimizer.tables.lr': Input should be less than or equal to 30000",
    "trainer.threads=5000000000": "'trainer.threads': Input should be less than or equal to 4096",
    "model.widths=[9000000000000]": "model: its dense layers do not fit into memory",
}


@pytest.mark.parametrize("assignment", CASES)
def test_a_setting_is_refused_before_the_folder_is_made(content, tmp_path, assignment):
    with pytest.raises(UserError, match=CASES[assignment]):
        train(validate(RunConfig, override(copy.deepcopy(content), [assignment]), "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "value"), [("rows", 2**70), ("rows", 2**60), ("dim", 4_000_000_000)])
def test_a_table_is_refused_before_the_folder_is_made(content, tmp_path, key, value):
    changed = copy.deepcopy(content)
    changed["schema"]["features"][0][key] = value
    with pytest.raises(UserError, match=f"'schema.features.0.{key}': Input should be less than or equal to"):
        train(validate(RunConfig, changed, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corrected_command_begins_the_run(content, tmp_path):
    """Exit code 2 on one screen, and nothing in the way of the next try."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["train", tmp_path / "run.yaml", "--run-dir", tmp_path / "run"]
    wrong = command(*words, "--set", "optimizer.tables.name=adam", check=False)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    command(*words, "--set", "optimizer.tables.name=sgd")


@pytest.mark.parametrize("rounding", [None, False])
def test_rounding_reaches_the_kernels(content, rounding):
    changed = override(copy.deepcopy(content), [f"optimizer.tables.stochastic_rounding={rounding or 'null'}"])
    if rounding is not None:
        changed["optimizer"]["tables"]["stochastic_rounding"] = rounding
    with process_group() as processes:
        model, _ = build_sharded(validate(RunConfig, changed, "test"), processes)
        lookups = [lookup for m in model.modules() for lookup in getattr(m, "_lookups", ())]
        kernels = [m for lookup in lookups for m in lookup.modules() if hasattr(m, "stochastic_rounding")]
        assert kernels
        assert {kernel.stochastic_rounding for kernel in kernels} == {rounding is None}
