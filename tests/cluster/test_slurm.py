"""MKT through TorchX on a real Slurm of two nodes: left alone, killed, out of time, refused.

One job is left alone; all others must end with its bits.
"""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from torchx.runner import get_runner

from tests.launch.conftest import ROOT
from tests.support import slurm
from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.slurm import until
from tools.chaos import differences

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"Slurm: {slurm.missing()}"),
    pytest.mark.timeout(600),
]
STAGES = {"pretrain": PRETRAIN, "finetune": FINETUNE}
LIMITED = ["--max_retries", "1", "--stop_before", "60"]
COMPONENTS = ROOT / "launch" / "components.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Slurm, with the two configs in the folder from which jobs are submitted."""
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as made:
        write_feed(made.folder / "feed")
        for stage, model in STAGES.items():
            content = {
                "schema": schema_at(made.folder / "feed"),
                "model": {**model, "dropout": 0.3},
                "loader": {"batch_size": 128},
                "trainer": {"epochs": 8 if stage == "pretrain" else 2, "log_every": 2, "threads": 1},
                "checkpoint": {"every_steps": 2},
                **({"domains": ["post"], "init_from": "told by the component"} if stage == "finetune" else {}),
            }
            (made.folder / f"{stage}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        yield made


@pytest.fixture(scope="module")
def submit(cluster):
    """Have TorchX submit MKT, or its first stage alone, on two nodes into the folder `run`; returns the number."""

    def submitted(component, run, *options, **cfg):
        stages = {
            "mkt": ["--pretrain", "pretrain.yaml", "--finetune", "finetune.yaml"],
            "pretrain": ["--config", "pretrain.yaml"],
        }
        run_dir = run if component == "mkt" else f"{run}/pretrain"
        arguments = [*stages[component], "--run_dir", run_dir, "-j", "2x1", *options]
        with pytest.MonkeyPatch.context() as patch, get_runner() as runner:
            patch.chdir(cluster.folder)
            for name, value in environment(cluster).items():
                patch.setenv(name, value)
            handle = runner.run_component(f"{COMPONENTS}:{component}", arguments, "slurm", cfg)
        return handle.split("/")[-1]

    return submitted


def environment(cluster):
    """What a job inherits; SBATCH_OPEN_MODE keeps the output of all tries."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"SLURM_CONF": str(cluster.config), "SBATCH_OPEN_MODE": "append", "PYTHONPATH": str(ROOT), "PATH": path}


def caught_training(cluster, number, run):
    """The processes of a job by rank, once they have written their first checkpoint."""
    until(lambda: len(cluster.ranks(number)) == 2, 120, lambda: cluster.said(number))
    ranks = cluster.ranks(number)
    saved = cluster.folder / run / "pretrain" / "checkpoints" / "step_000000002"
    until(saved.exists, 120, lambda: cluster.said(number))
    return ranks


@pytest.fixture(scope="module")
def jobs(cluster, submit):
    """Two jobs that begin at once, by number: one is left alone, the other has its second process halted."""
    numbers = {"alone": submit("mkt", "alone"), "limited": submit("pretrain", "limited", *LIMITED, time="00:02:00")}
    halted = caught_training(cluster, numbers["limited"], "limited")[1]
    halted.suspend()
    return {**numbers, "halted": halted, "endpoints": [cluster.endpoints(number) for number in numbers.values()]}


def assert_ends_as_the_one_left_alone(cluster, jobs, number, run, restarts):
    """Down to the last bit."""
    for job in (jobs["alone"], number):
        assert cluster.ended(job, 250) == "COMPLETED", cluster.said(job)
    assert cluster.job(number)["Restarts"] == restarts
    for stage in sorted(path.name for path in (cluster.folder / run).iterdir()):
        assert differences(cluster.folder / "alone" / stage, cluster.folder / run / stage) == []


def test_before_its_time_is_out_a_job_saves_and_is_requeued(cluster, jobs):
    number, checkpoints = jobs["limited"], cluster.folder / "limited" / "pretrain" / "checkpoints"
    until(lambda: "60 s to the time limit" in cluster.said(number), 120, lambda: cluster.said(number))
    jobs["halted"].resume()
    cluster.start_again(number)
    stopped = re.search(r"stopped after step (\d+) of \d+; a checkpoint was written; go on with", cluster.said(number))
    assert stopped, cluster.said(number)
    assert (checkpoints / f"step_{int(stopped[1]):09d}").exists()
    assert_ends_as_the_one_left_alone(cluster, jobs, number, "limited", restarts="1")


def test_both_stages_are_trained(cluster, jobs):
    assert cluster.ended(jobs["alone"], 250) == "COMPLETED", cluster.said(jobs["alone"])
    assert cluster.job(jobs["alone"])["Restarts"] == "0"
    for stage in STAGES:
        assert (cluster.folder / "alone" / stage / "metrics.json").exists()


def test_jobs_on_the_same_nodes_at_once_have_ports_of_their_own(cluster, jobs):
    """Each stage on its own port of the first node; the two jobs are the first and the third by number."""
    assert [jobs[name] for name in ("alone", "limited")] == ["1", "3"]
    assert jobs["endpoints"] == [{"127.0.0.1:29502", "127.0.0.1:29503"}, {"127.0.0.1:29506"}]


def test_a_killed_rank_has_the_job_requeued_and_it_goes_on(cluster, jobs, submit):
    number = submit("pretrain", "killed", "--max_retries", "1")
    caught_training(cluster, number, "killed")[1].kill()
    cluster.start_again(number)
    said = " ".join(line for line in cluster.said(number).splitlines() if "error: rank" in line)
    assert "rank 0 of 2" in said
    assert "lost its connection to another process" in said
    assert_ends_as_the_one_left_alone(cluster, jobs, number, "killed", restarts="1")


def test_an_error_of_the_user_is_not_requeued(cluster, submit):
    missing = submit("pretrain", "missing", "--max_retries", "3", "schema.root=/nowhere")
    short = submit("pretrain", "short", "--max_retries", "3", "--stop_before", "60", time="00:01:00")
    told = {missing: "error: /nowhere/items/train.parquet: no Parquet file", short: "error: --stop_before 60: the time"}
    for number, error in told.items():
        assert cluster.ended(number, 100) == "FAILED", cluster.said(number)
        assert cluster.job(number)["Restarts"] == "0"
        assert error in cluster.said(number)
    assert not (cluster.folder / "short").exists()
