"""Training honours the schema's row weights by default, and says so where it does not."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import evaluate
from torchrec_xd.training.train_run import train

EVERY = 8


def sampled(folder):
    """A feed whose training rows keep one negative in `EVERY`; its other splits are whole."""
    write_feed(folder, rows=4000)
    for domain in ("items", "video", "post"):
        for path in (folder / domain).glob("*.parquet"):
            table = pq.read_table(path)
            positive = table["click"].to_numpy().astype(bool)
            train_rows = path.stem == "train" and domain == "post"
            kept = positive | (np.arange(len(table)) % EVERY == 0) if train_rows else np.ones(len(table), bool)
            weight = np.where(positive | (not train_rows), 1.0, EVERY)
            pq.write_table(table.append_column("weight", [weight]).filter(kept), path, row_group_size=64)
    return {**schema_at(folder), "weight": "weight"}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return sampled(tmp_path_factory.mktemp("feed"))


def run_of(schema, run, **trainer):
    content = {
        "schema": schema,
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 64},
        "optimizer": {"dense": {"lr": 0.01}},
        "trainer": {"epochs": 2, "threads": 1, **trainer},
    }
    train(validate(RunConfig, content, "test"), run)
    return evaluate(run, "test", "last")["eval"]["click@post"]["calibration"], (run / "log.txt").read_text()


SAID = (
    "warning: trainer.weighted is false, and row weights ('weight') differ: every row counts once in the loss, so "
    "scores are those of the sampled rows; calibration, log loss and NE, which honour the weights, will be off by the "
    "sampling rate. Leave trainer.weighted out"
)


def test_scores_are_calibrated_in_the_natural_distribution_by_default(schema, tmp_path):
    calibration, log = run_of(schema, tmp_path / "default")
    assert calibration == pytest.approx(1, abs=0.1)
    assert "trainer.weighted" not in log
    assert run_of(schema, tmp_path / "chosen", weighted=True)[0] == calibration
    off, log = run_of(schema, tmp_path / "off", weighted=False)
    assert off > 1.3
    assert log.count(SAID) == 1


def test_weights_that_are_all_equal_need_no_warning(tmp_path):
    schema = sampled(tmp_path / "feed")
    path = tmp_path / "feed" / "post" / "train.parquet"
    table = pq.read_table(path)
    same = table.set_column(table.column_names.index("weight"), "weight", [np.full(len(table), 3.0)])
    pq.write_table(same, path)
    assert SAID not in run_of(schema, tmp_path / "run", weighted=False)[1]


# ---- domains ---------------------------------------------------------------------------------------------------------


def test_a_domain_weighs_what_its_rows_weigh_however_large_the_weights(schema):
    """Mean 1 in every domain in training, the same on every rank; ratios within a domain stay."""
    schema, sums = Schema.model_validate(schema), [0.0, 0.0, 0.0]
    rows, seen = [0, 0, 0], set()
    for rank in range(2):
        loader = Loader(schema, LoaderSettings(batch_size=256), "train", ShardSpec(rank, 2))
        loader.even_out_weights()
        for batch in loader.batches():
            for i in range(3):
                own = batch.weight_B[batch.rows(i)]
                sums[i] += own.double().sum().item()
                rows[i] += len(own)
                seen |= {(i, round(value, 4)) for value in own.tolist()}
    assert [total / count for total, count in zip(sums, rows, strict=True)] == pytest.approx([1, 1, 1], rel=0.05)
    assert {value for i, value in seen if i < 2} == {1.0}
    low, high = sorted(value for i, value in seen if i == 2)
    assert high / low == pytest.approx(EVERY, rel=1e-3)


def test_weights_stay_as_they_are_in_evaluation_and_where_there_are_none(schema):
    read = Schema.model_validate(schema)
    (batch, *_) = Loader(read, LoaderSettings(batch_size=256), "train").batches()
    assert sorted(batch.weight_B.unique().tolist()) == [1, EVERY]
    loader = Loader(read.model_copy(update={"weight": None}), LoaderSettings(batch_size=256), "train")
    loader.even_out_weights()
    assert all(torch.equal(batch.weight_B, torch.ones(len(batch))) for batch in loader.batches())
