"""A finished run next to its plan: real runs on one and two gloo ranks."""

import json
import statistics
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of
from torchrec_xd.cli.plan import app
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.optimizers import fuse_optimizers
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.distributed.sharding import shard, table_bytes
from torchrec_xd.errors import UserError
from torchrec_xd.planner import PlannerSettings, make_plan, plan_module, plan_run
from torchrec_xd.planner.inputs.cluster import this_machine
from torchrec_xd.planner.plan import read_plan
from torchrec_xd.planner.report.check import check_run
from torchrec_xd.training import building
from torchrec_xd.training import train_run as run

ROWS = {"t_category": 6, "t_hour": 24, "t_style": 5, "t_tags": 10, "t_topic": 7, "t_user": 40, "t_item": 60}
BYTES_A_ROW = 4 * 4 + 4
"""Four fp32 weights, and one fp32 number of row-wise Adagrad."""
STEP_ROWS = 64


def config(folder, ranks, **settings):
    return {
        "schema": schema_at(folder / "feed"),
        "model": {"name": "mkt_pretrain", "expert_widths": [8, 6], "aligned_dim": 4, "tower_widths": [4]},
        "loader": {"batch_size": STEP_ROWS // ranks},
        "trainer": {"log_every": 5},
        **settings,
    }


def train(content: dict, folder: Path) -> int:
    """Resident memory after a run."""
    run.train(RunConfig.model_validate(content), folder)
    return psutil.Process().memory_info().rss


def train_rank(rank: int, content: dict, folder: Path) -> int:
    """The same inside the process group of the test."""
    run.process_group = lambda _: nullcontext(processes_of(rank))
    return train(content, folder)


@pytest.fixture(scope="module", params=[1, 2])
def finished(request, tmp_path_factory):
    """Run folder and each rank's resident memory at the end."""
    folder = tmp_path_factory.mktemp("check")
    content = config(write_feed(folder / "feed").parent, request.param)
    if request.param == 1:
        return folder / "run", [train(content, folder / "run")]
    return folder / "run", run_ranks(request.param, train_rank, content, folder / "run")


def measured(folder):
    return json.loads((folder / "metrics.json").read_text())["train"]["ranks"]


def test_a_run_measures_each_rank(finished):
    folder, resident = finished
    ranks = measured(folder)
    held = [0] * len(resident)
    for table in read_plan(folder / "plan.json").tables:
        held[table.ranks[0]] += ROWS[table.name] * BYTES_A_ROW
    assert [rank["table_bytes"] for rank in ranks] == held
    assert sum(held) == sum(ROWS.values()) * BYTES_A_ROW
    for rank, bytes_ in zip(ranks, resident, strict=True):
        # A peak is no less than what is held at the end, but for what the end itself takes.
        assert 0.9 * bytes_ < rank["peak_memory_bytes"] < 3 * bytes_
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # 25 steps of 64 rows, a line every 5.
    speeds = [line["rows_per_second"] for line in lines if "rows_per_second" in line]
    assert len(speeds) == 5
    assert ranks[0]["step_ms"] == pytest.approx(statistics.median(1000 * STEP_ROWS / speed for speed in speeds))
    assert all(rank["step_ms"] > 0 for rank in ranks)


def test_the_kept_plan_is_one_that_a_run_takes(finished):
    folder, resident = finished
    kept = load_run(folder)
    sharding = kept.sharding.model_copy(update={"plan": folder / "plan.json"})
    task = building.build(kept, building.source_run(kept))
    fuse_optimizers(task, kept.optimizer.tables)
    cluster = this_machine("cpu", len(resident), len(resident))
    plan, loaded = plan_run(task, torchrec_sharders(), cluster, sharding, 1, {})
    assert plan == read_plan(folder / "plan.json")
    assert set(loaded.plan) == {"embeddings.bags", "embeddings.sequences"}
    # Sequences count their length, as where the tool plans the config.
    assert (
        plan
        == make_plan(
            task,
            torchrec_sharders(),
            plan.cluster,
            PlannerSettings(
                batch_size=STEP_ROWS // len(resident), pooling={"hist": 5}, constraints=kept.sharding.all_constraints
            ),
        ).plan
    )


def test_check_shows_the_plan_next_to_the_run(finished, tmp_path):
    folder, resident = finished
    done = CliRunner().invoke(app, ["check", str(folder), "--json", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    assert "the measured step includes reading" in " ".join(done.output.split())
    report = json.loads((tmp_path / "report.json").read_text())
    plan = read_plan(folder / "plan.json")
    assert [rank["rank"] for rank in report["ranks"]] == list(range(len(resident)))
    for rank, found in zip(report["ranks"], measured(folder), strict=True):
        number = rank["rank"]
        assert {key: rank[key] for key in found} == found
        assert rank["estimated_bytes"] == plan.rank_ddr[number] > rank["table_bytes"]
        assert rank["estimated_ms"] == pytest.approx(plan.rank_ms[number])
        assert rank["estimated_ms"] == pytest.approx(rank["estimated_lookup_ms"] + rank["estimated_exchange_ms"])
        assert rank["bytes_ratio"] == pytest.approx(rank["estimated_bytes"] / rank["table_bytes"])
        assert rank["ms_ratio"] == pytest.approx(rank["estimated_ms"] / rank["step_ms"])
        assert f"{rank['table_bytes']:,}" in done.output


def test_replicas_and_their_optimizer_state_count(tmp_path):
    given = RunConfig.model_validate(config(write_feed(tmp_path / "feed").parent, 1))
    task, cluster = building.build(given, building.source_run(given)), this_machine("cpu", 1, 1)
    fuse_optimizers(task, given.optimizer.tables)
    replicated = ({"tables": ["t_user"], "sharding_types": ["data_parallel"]},)
    whole = ({"tables": ["t_[!u]*"], "sharding_types": ["table_wise"]},)
    settings = PlannerSettings(constraints=(*replicated, *whole))
    with process_group() as processes:
        plan = plan_module(task, torchrec_sharders(), cluster, settings)
        model, optimizers = shard(task, plan, given.optimizer, processes)
        [batch] = islice(Loader(given.schema_in_use, given.loader, "train", ShardSpec()).batches(), 1)
        optimizers.set_lr(0, 1)
        optimizers.zero_grad()
        model(batch).total_loss().backward()
        optimizers.step()
        # A replica's row-wise Adagrad is torch's own: it also counts its steps, in one fp32 number.
        assert table_bytes(model, optimizers) == sum(ROWS.values()) * BYTES_A_ROW + 4


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no finished run: it has no metrics\.json"):
        check_run(tmp_path)
    metrics = tmp_path / "metrics.json"
    for text, fault in {
        "{": "cannot be read",
        "[]": "has no measurements of the ranks",
        '{"train": {"steps": 3}}': "has no measurements of the ranks",
        '{"train": {"ranks": [{"table_bytes": -1}]}}': r"rank 0: 'table_bytes': .*greater than or equal to 0",
        '{"train": {"ranks": []}}': r"has no plan\.json",
    }.items():
        metrics.write_text(text)
        with pytest.raises(UserError, match=fault):
            check_run(tmp_path)


def test_a_run_of_other_ranks_and_a_run_without_steps(finished, tmp_path):
    folder, resident = finished
    (tmp_path / "plan.json").write_text((folder / "plan.json").read_text())
    idle = [{**rank, "step_ms": None} for rank in measured(folder)]
    (tmp_path / "metrics.json").write_text(json.dumps({"train": {"ranks": idle}}))
    assert all(check.ms_ratio is None for check in check_run(tmp_path))
    assert "–" in CliRunner().invoke(app, ["check", str(tmp_path)]).output
    (tmp_path / "metrics.json").write_text(json.dumps({"train": {"ranks": [*idle, idle[0]]}}))
    with pytest.raises(UserError, match=f"has {len(resident) + 1} ranks, plan.json has {len(resident)}:"):
        check_run(tmp_path)
