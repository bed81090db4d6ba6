"""Runs on two ranks over data that does not divide: no hang, no row lost, the same metrics as on one."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import PRETRAIN
from tests.support.planner_cases import gpus
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of
from torchrec_xd.config import RunConfig
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner import Constraint, PlannerSettings, make_plan
from torchrec_xd.settings import validate
from torchrec_xd.training import building, inference, trainer
from torchrec_xd.training import train_run as run


def config_of(folder: Path, **changes) -> RunConfig:
    content = {
        "schema": schema_at(folder),
        "model": PRETRAIN,
        "loader": {"batch_size": 32},
        "trainer": {"epochs": 2, "log_every": 1000, "threads": 1},
        **changes,
    }
    return validate(RunConfig, content, "test")


def alone(rank: int) -> None:
    """Let runs take the ranks of the test for their process group."""
    for module in (run, inference):
        module.process_group = lambda *_: nullcontext(processes_of(rank))


def train_and_measure(rank: int, config: RunConfig, folder: Path) -> tuple[dict, dict, list[tuple[int, ...]]]:
    """What the run says of itself, its metrics on `valid`, and the rows by domain of each batch that it trained on."""
    alone(rank)
    batches, take = [], trainer.forward

    def noted(training, batch):
        batches.append(batch.offsets)
        return take(training, batch)

    trainer.forward = noted
    content = run.train(config, folder)
    return content, inference.evaluate(folder, "valid", "last"), batches


@pytest.fixture
def feed(tmp_path):
    """`video` has one row; `items` lies in one row group beside empty files and validates on nothing; `post` fills no
    last batch, validates on one row, and tests on three."""
    folder = write_feed(tmp_path / "feed")
    kept = {"video/train": 1, "post/train": 333, "post/valid": 1, "post/test": 3}
    for name, rows in kept.items():
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table.slice(0, rows), folder / f"{name}.parquet")
    items = pq.read_table(folder / "items" / "train.parquet")
    (folder / "items" / "train.parquet").unlink()
    (folder / "items" / "train.parquet").mkdir()
    pq.write_table(items, folder / "items" / "train.parquet" / "all.parquet")
    pq.write_table(items.slice(0, 0), folder / "items" / "train.parquet" / "empty.parquet")
    pq.ParquetWriter(folder / "items" / "train.parquet" / "no_row_group.parquet", items.schema).close()
    valid = folder / "items" / "valid.parquet"
    pq.write_table(pq.read_table(valid).slice(0, 0), valid)
    return folder


def test_a_run_over_awkward_data(feed, tmp_path):
    config, folder = config_of(feed), tmp_path / "run"
    found = run_ranks(2, train_and_measure, config, folder)
    (content, valid, _), _ = found
    steps = 2 * -(-(800 + 1 + 333) // 64)
    assert [len(batches) for *_, batches in found] == [steps, steps]
    assert content["train"]["steps"] == steps
    by_domain = np.diff([offsets for *_, batches in found for offsets in batches])
    assert by_domain.sum(axis=0).tolist() == [2 * 800, 2 * 1, 2 * 333]
    assert content["eval"]["click@post"]["rows"] == 3
    assert valid["eval"]["click@post"]["rows"] == 1
    for split, metrics in (("test", content), ("valid", valid)):
        for task, values in inference.evaluate(folder, split, "last")["eval"].items():
            for name, value in values.items():  # None where rows are too few to tell
                assert metrics["eval"][task][name] == (value and pytest.approx(value, rel=1e-5)), (split, task, name)


def refused(rank: int, cases: list[tuple[RunConfig, Path]]) -> list[str]:
    """What every rank is told, which would wait for the others if one alone were."""
    alone(rank)
    said = []
    for config, folder in cases:
        with pytest.raises(UserError) as error:
            run.train(config, folder)
        said.append(str(error.value))
    return said


def test_what_is_refused_is_refused_on_all_ranks_before_anything_is_written(tmp_path):
    folder = write_feed(tmp_path / "feed")
    few = write_feed(tmp_path / "few", rows=1)
    task = building.build(config_of(folder))
    wishes = (Constraint(tables=("t_user",), sharding_types=("table_row_wise",)),)
    plan = make_plan(task, torchrec_sharders(), gpus(2), PlannerSettings(constraints=wishes)).plan
    plan.save(tmp_path / "plan.json")
    cases = [
        (config_of(folder, sharding={"plan": str(tmp_path / "plan.json")}), tmp_path / "gpu"),
        (config_of(folder, sharding={"communication": {"forward": "int8"}}), tmp_path / "int8"),
        (config_of(few, loader={"batch_size": 1}), tmp_path / "few_rows"),
    ]
    for said in run_ranks(2, refused, cases):
        assert "plan.json: table 'embeddings.bags.t_user' is table_row_wise, which 'cpu' does not support" in said[0]
        assert "table 't_user' (table_wise): its shards are 4 columns wide" in said[1]
        assert "the train split has 4 rows, too few for 2 processes and 2 steps an epoch" in said[2]
    assert not [path for _, path in cases if path.exists()]
