"""`metrics`: its rows, and what it says of them. Its timings are not looked at."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from torchrec_xd.benchmark.commands import app
from torchrec_xd.benchmark.evaluating import made_up
from torchrec_xd.evaluation.metrics import binary_metrics


def rows_of(rank, rows, users=50, weights=True):
    """Score, label, user and weight of a rank's rows."""
    batches = list(made_up(np.random.default_rng([0, rank]), rows, users, weights, 64))
    assert sum(len(batch) for batch, _ in batches) == rows
    columns = ((score[:, 0], batch.label_BT[:, 0], batch.user_B, batch.weight_B) for batch, score in batches)
    return [np.concatenate(parts) for parts in zip(*columns, strict=True)]


def test_rows_are_like_those_of_an_evaluation():
    score, label, user, weight = rows_of(0, 20_000)
    found = binary_metrics(score, label, user, weight)
    assert score.dtype == np.float32
    assert 0.7 < found.auc < 0.8
    assert found.calibration == pytest.approx(1, abs=0.1)
    assert len(np.unique(weight)) == 49
    assert np.bincount(user)[0] > 10 * np.bincount(user)[-1]  # a few users have many rows
    assert (np.diff(user) < 0).any()
    assert set(rows_of(0, 100, weights=False)[3]) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_point_is_measured_in_processes_of_its_own(tmp_path, ranks):
    rows, out = 3001, tmp_path / "result.json"
    options = ["--rows", str(rows), "--ranks", str(ranks), "--users", "50", "--weights", "--batch-size", "64"]
    found = CliRunner().invoke(app, ["metrics", *options, "--json", str(out)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    content = json.loads(out.read_text())
    [line], [details] = content["rows"], content["details"]
    assert line["what"] == f"3,001 rows, {ranks} process{'es' * (ranks > 1)}"
    assert len(details["by rank"]) == ranks
    assert all(rank["peak_bytes"] > 1e8 and rank["seconds"] > 0 for rank in details["by rank"])
    assert line["peak GB of all"] == pytest.approx(sum(rank["peak_bytes"] for rank in details["by rank"]) / 1e9)
    shares = (3001,) if ranks == 1 else (1501, 1500)
    parts = [rows_of(rank, share) for rank, share in enumerate(shares)]
    expected = binary_metrics(*(np.concatenate(columns) for columns in zip(*parts, strict=True))).as_dict()
    assert details["eval"] == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}
