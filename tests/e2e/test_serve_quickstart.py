"""`make serve-quickstart`, on another run: exported, served, compared, put under load with swaps, and stopped."""

from __future__ import annotations

import json

import pytest

from tests.support.feeds import schema_at, write_feed
from tools.serve_quickstart import serve_quickstart
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training.train_run import train


def test_a_run_is_served_and_measured(tmp_path, capsys):
    content = {
        "schema": schema_at(write_feed(tmp_path / "feed")),
        "model": {"name": "single", "widths": [8]},
        "domains": ["post"],
        "embeddings": {"init_std": 0.5},
        "loader": {"batch_size": 64},
        "trainer": {"threads": 1},
    }
    train(validate(RunConfig, content, "test"), tmp_path / "run")
    out = tmp_path / "out"
    for _ in range(2):  # what the first time left does not matter
        serve_quickstart(tmp_path / "run", out, seconds=2.0, swaps=2)
    found = json.loads((out / "summary.json").read_text())
    assert list(found) == [
        "requests",
        "failed",
        "max_abs_difference",
        "cpu_ms_p50",
        "wall_ms_p50",
        "wall_ms_p99",
        "resident_mb",
        "tables_mb",
        "seconds_until_ready",
    ]
    assert found["requests"] > 5
    assert found["failed"] == 0
    assert found["max_abs_difference"] <= 1e-6
    assert 0 < found["cpu_ms_p50"] < 1000
    assert 0 < found["wall_ms_p50"] <= found["wall_ms_p99"]
    assert 0 < found["tables_mb"] < found["resident_mb"]
    assert "cpu_ms_p50" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "export" / "versions").iterdir()) == ["1", "2"]


def test_without_a_run_it_says_what_to_do_first(tmp_path):
    with pytest.raises(UserError, match="run is no finished run; make one first: make quickstart"):
        serve_quickstart(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
