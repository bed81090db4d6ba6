"""`tools.references` on made-up coupons."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from tools.references import BOOSTED, COUNT, app, reference_rows
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import binary_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Redemption depends on one fact alone; the count is noise, but for six test rows of campaign type C."""
    folder = tmp_path_factory.mktemp("references")
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        columns = {name: rng.random(1000) for names in BOOSTED.values() for name in names}
        columns["campaign_type"] = rng.integers(1, 3, 1000)
        columns["household"] = rng.integers(0, 50, 1000)
        columns["redeemed"] = (columns["redemptions_log"] > 0.7).astype(np.int8)
        if split == "test":
            columns["campaign_type"][:4], columns["redeemed"][:4] = 3, [1, 0, 1, 0]
            columns["campaign_type"][4:] = 1
            columns[COUNT][:4] = [3, 2, 1, 0]
        (folder / "coupon" / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "coupon" / split / "part-00000.parquet")
    return folder


def test_both_references(data):
    with threadpool_limits(1):
        rows = {(row["model"], row["slice"]): row for row in reference_rows(data)}
    assert len(rows) == 9
    assert rows["counting", "B+C"]["auc"] == pytest.approx(0.75)  # three of four pairs
    assert (rows["counting", "B+C"]["rows"], rows["counting", "B+C"]["positives"]) == (4, 2)
    assert rows["counting", "all"]["logloss"] is None
    for model in BOOSTED:
        assert rows[model, "A"]["auc"] > 0.99
        assert rows[model, "A"]["logloss"] < 0.1
        assert rows[model, "A"]["calibration"] == pytest.approx(1, abs=0.1)


def test_the_command_writes_rows(data, tmp_path):
    out = tmp_path / "references.json"
    with threadpool_limits(1):
        shown = CliRunner().invoke(app, ["--data", str(data), "--split", "valid", "--json", str(out)])
    assert shown.exit_code == 0
    assert "simulated" in shown.stdout
    rows = json.loads(out.read_text())
    assert [row["rows"] for row in rows if row["slice"] == "all"] == [1000] * 3
    assert set(rows[0]) == {
        *("model", "task", "domain", "slice", "auc", "gauc", "logloss", "calibration", "rows", "positives", "seed")
    }


def test_scores_for_studies(data, tmp_path):
    arguments = ["--data", str(data), "--seeds", "2", "--scores", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    with threadpool_limits(1):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    test = pq.read_table(data / "coupon" / "test")
    user, label = test["household"].to_numpy(), test["redeemed"].to_numpy().astype(float)
    rows = json.loads((tmp_path / "rows.json").read_text())
    for row in (row for row in rows if row["slice"] == "all"):
        scores = pq.read_table(tmp_path / str(row["seed"]) / f"{row['model']}.parquet")
        assert scores.column_names == ["household", "score_redeemed@coupon"]
        assert np.array_equal(scores["household"], user)
        found = binary_metrics(scores["score_redeemed@coupon"].to_numpy(), label, user)
        assert found.auc == pytest.approx(row["auc"], abs=1e-3)  # in float32 there are ties just below 1
        assert row["logloss"] is None or found.logloss == pytest.approx(row["logloss"], rel=1e-5)
    count = pq.read_table(tmp_path / "1" / "counting.parquet")["score_redeemed@coupon"].to_numpy()
    assert np.array_equal(count, test[COUNT].to_numpy().astype(np.float32))
    shown = CliRunner().invoke(app, ["--data", str(data), "--split", "valid", "--scores", str(tmp_path)])
    assert "studies compare on the test rows" in str(shown.exception)


def test_misuse_is_explained(data, tmp_path):
    with pytest.raises(UserError, match="split 'train' cannot be scored; choose test or valid"):
        reference_rows(data, "train")
    shown = CliRunner().invoke(app, ["--data", str(tmp_path)])
    assert "torchrec-xd prepare cj_feed" in str(shown.exception)
