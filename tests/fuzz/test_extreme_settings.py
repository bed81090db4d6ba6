"""Settings at and beyond their limits: a run trains, or is refused in plain words before its folder is made."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import override, validate
from torchrec_xd.training.train_run import train

NUMBERS = [
    -1, 0, 1, 2, 3, 7, 10**3, 2**31, 2**63 - 1, 2**63, 2**70, 10**23, 4_000_000_000, 0.5, 1.0, -0.1, 1e-45, 1e-30, 1e30,
    1e38, 1e39, 1e300, "nan", "inf", "true", "null", "[]", "[1, 2]", "[1.5, 2]", "[0.5, 0.99]", "abc",
]  # fmt: skip
KEYS = [
    "model.widths", "model.dropout", "model.aligned_dim", "model.hfa", "embeddings.init_std", "embeddings.dtype",
    "optimizer.tables.name", "optimizer.tables.lr", "optimizer.tables.eps", "optimizer.tables.stochastic_rounding",
    "optimizer.dense.lr", "optimizer.dense.betas", "optimizer.dense.eps", "optimizer.dense.weight_decay",
    "optimizer.dense.clip_norm", "optimizer.schedule.warmup_steps", "optimizer.schedule.decay",
    "optimizer.schedule.final", "loader.batch_size", "loader.shuffle_rows", "loader.prefetch", "loader.mixing",
    "loader.curriculum", "trainer.epochs", "trainer.patience", "trainer.log_every", "trainer.precision",
    "trainer.weighted", "checkpoint.every_steps",
    "checkpoint.keep", "seed", "schema.dim", "schema.features.0.rows", "schema.features.0.dim",
    "schema.features.2.length", "sharding.types", "metrics.slices", "monitor", "train_on_valid", "evaluate_on",
]  # fmt: skip
CHOICES = {
    "embeddings.dtype": ["fp16", "fp32", "bf16"],
    "optimizer.tables.name": ["adam", "adagrad", "sgd", "rowwise_adagrad", "Adam"],
    "optimizer.schedule.decay": ["linear", "cosine", "exp"],
    "trainer.precision": ["bf16", "auto", "fp64"],
    "sharding.types": ["[data_parallel]", "[row_wise]", "[column_wise]", "[table_wise]", "[]", "[rows]"],
    "metrics.slices": ["{hour: null}", "{hor: null}", "{hour: {a: [1]}}", "{words: null}"],
    "evaluate_on": ["train", "valid", "none"],
}
EXTREME_EPOCHS = 50
"""More would train for hours, as asked."""


def assignment(rng: np.random.Generator) -> str:
    key = str(rng.choice(KEYS))
    values = CHOICES.get(key, NUMBERS) if rng.random() < 0.8 else NUMBERS
    value = values[rng.integers(len(values))]
    if key == "trainer.epochs" and isinstance(value, int) and EXTREME_EPOCHS < value < 2**63:
        value = EXTREME_EPOCHS
    return f"{key}={value}"


def config_of(content, assignments):
    """The config, with items of lists set by their number."""
    schema = {**content["schema"], "features": [dict(feature) for feature in content["schema"]["features"]]}
    others = []
    for each in assignments:
        key, _, value = each.partition("=")
        if key.startswith("schema.features."):
            _, _, index, name = key.split(".")
            schema["features"][int(index)].update(override({}, [f"{name}={value}"]))
        else:
            others.append(each)
    return validate(RunConfig, override({**content, "schema": schema}, others), "test")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return {
        "schema": schema_at(write_feed(tmp_path_factory.mktemp("extreme") / "feed", rows=64)),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "trainer": {"threads": 1},
    }


def test_extreme_settings_train_or_are_refused(content, tmp_path, fuzz_seeds):
    refused = 0
    for seed in fuzz_seeds:
        rng = np.random.default_rng(seed)
        assignments = [assignment(rng) for _ in range(rng.integers(1, 3))]
        print(f"seed {seed}: {assignments}")
        run, text = tmp_path / "run", ""
        try:
            train(config_of(content, assignments), run)
        except UserError as error:
            refused += 1
            text = str(error)
        # What only training can find: numbers that become infinite on the way.
        assert not text or not run.exists() or "NaN or infinite" in text or "became" in text, text
        shutil.rmtree(run, ignore_errors=True)
    assert 0.2 < refused / len(fuzz_seeds) < 0.95
