"""One rank on each of two machines: the wire between them is cut for a moment, cut for good, slow and lossy."""

import json

import pytest
import yaml

from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import PRETRAIN
from tools import chaos, partition, two_machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(two_machines.missing()), reason=f"two machines: {two_machines.missing()}"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """MKT's first stage with dropout, so that the random generators count."""
    folder = tmp_path_factory.mktemp("apart")
    content = {
        "schema": schema_at(write_feed(folder / "feed")),
        "model": {**PRETRAIN, "dropout": 0.3},
        "loader": {"batch_size": 64},
        "trainer": {"epochs": 3, "log_every": 2, "threads": 1},
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    (folder / "mkt.yaml").write_text(yaml.safe_dump(content))
    return folder / "mkt.yaml"


def test_networks_that_fail(config, tmp_path):
    """A cut of 5 s goes unnoticed; one for good ends both machines in time, in a line, to be started again."""
    cuts = [partition.Cut(0.1, partition.SHORT_CUT), partition.Cut(0.4, None)]
    report = chaos.put_apart(config, [], tmp_path / "out", cuts, 2, 200.0)
    assert report["bit_equal"]
    short, good = report["cuts"]
    assert short["cut_s"] == 5.0
    assert short["after_step"] < good["after_step"]
    assert partition.TIMEOUT_S <= good["ended_after_s"] <= partition.TIMEOUT_S + 30
    logs = [(tmp_path / "out" / f"disturbed.machine{machine}.log").read_text() for machine in (0, 1)]
    for rank, log in enumerate(logs):
        (told,) = (line for line in log.splitlines() if "error: " in line)
        assert f"error: rank {rank} of 2, on " in told
        assert "waited 15 s (trainer.timeout_s) for the other processes in vain" in told
        assert "Traceback" not in log

    with two_machines.two_machines() as machines:
        machines.narrow(2)
        machines.lose(2)
        train = ["train", str(config), "--set", "trainer.threads=1"]
        with partition.started(machines, train, tmp_path / "out" / "slow", 2, 200.0) as job:
            job.finish()
    assert chaos.differences(tmp_path / "out" / "undisturbed", tmp_path / "out" / "slow") == []
    runs = [json.loads((tmp_path / "out" / run / "metrics.json").read_text()) for run in ("undisturbed", "slow")]
    fast, slow = (run["train"]["rows_per_second"] for run in runs)
    assert slow < fast / 1.5
