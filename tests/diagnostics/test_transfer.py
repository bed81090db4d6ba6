"""EXIT's transfer probability against the truth: by hand, and row by row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import placements
from tests.support.small_models import train_run
from torchrec_xd.diagnostics.transfer import agreement, reliability
from torchrec_xd.training.diagnosis import diagnose
from torchrec_xd.training.inference import score


def test_agreement_on_planted_numbers():
    said, true = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.3, 0.1, 0.5, 0.5])
    found = agreement(said, true)
    assert found["correlation"] == pytest.approx(0.05 / np.sqrt(0.05 * 0.11))  # deviations multiplied out
    assert found["rmse"] == pytest.approx(np.sqrt((0.04 + 0.01 + 0.04 + 0.01) / 4))
    assert (found["rows"], found["mean"], found["true_mean"]) == (4, pytest.approx(0.25), pytest.approx(0.35))
    assert agreement(np.full(4, 0.5), true)["correlation"] is None
    assert agreement(said[:0], true[:0])["rmse"] is None


def test_reliability_by_hand():
    said, true = np.array([0.05, 0.07, 0.31, 1.0]), np.array([0.2, 0.0, 0.4, 0.9])
    bins = reliability(said, true)
    assert [b["rows"] for b in bins] == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert bins[0] == {"low": 0, "high": 0.1, "rows": 2, "mean": pytest.approx(0.06), "true_mean": pytest.approx(0.1)}
    assert bins[1]["mean"] is None


def test_exit_is_held_against_the_truth_of_the_same_rows(tmp_path):
    # Row by row: batches are shuffled, predictions of `score` and the column come in the order of the file.
    file = placements.write_placements(tmp_path) / "home" / "test.parquet"
    rows = pq.read_table(file)
    true = np.random.default_rng(3).random(len(rows))
    rows = rows.append_column("prob_transfer_search", pa.array(true))
    pq.write_table(rows, file, row_group_size=64)
    run = train_run(
        tmp_path,
        "exit",
        schema=placements.schema_at(tmp_path),
        domains=["home"],
        model={"name": "exit", **placements.SETTINGS},
        loader={"batch_size": 64},
        trainer={"threads": 1},
    )
    content = diagnose(run, run)
    assert list(content["diagnostics"]) == ["scores", "selection", "transfer", "transfer_by_scene", "tables"]
    sources = content["diagnostics"]["transfer"]["sources"]
    score(run, str(file), tmp_path / "scores.parquet", "home", "best", parts=True)
    said = pq.read_table(tmp_path / "scores.parquet")["score_fit_search@home"].to_numpy().astype(np.float64)
    search = sources["search"]
    everywhere, wanted = search["truth"]["all"], rows["wanted_search"].to_numpy() == 1
    assert everywhere["rows"] == 320
    assert everywhere["correlation"] == pytest.approx(np.corrcoef(said, true)[0, 1], abs=1e-5)
    assert everywhere["rmse"] == pytest.approx(np.sqrt(np.mean((said - true) ** 2)), abs=1e-5)
    assert search["truth"]["wanted"]["correlation"] == pytest.approx(
        np.corrcoef(said[wanted], true[wanted])[0, 1], abs=1e-5
    )
    slots = content["diagnostics"]["transfer_by_scene"]["scenes"]["slot"]
    assert [line["value"] for line in slots] == sorted(set(rows["slot"].to_pylist()))
    for line in slots:
        inside = rows["slot"].to_numpy() == line["value"]
        assert line["rows"] == inside.sum()
        assert line["sources"]["search"]["mean"] == pytest.approx(said[inside].mean(), abs=1e-5)
        assert line["sources"]["search"]["true_mean"] == pytest.approx(true[inside].mean(), abs=1e-5)
        assert line["sources"]["map"]["true_mean"] is None
    assert sum(b["rows"] for b in search["reliability"]) == 320
    assert sources["map"]["truth"] is sources["map"]["reliability"] is None
    page = (run / "diagnostics.html").read_text()
    assert "rows with an interest in the source" in page


def test_with_rows_of_the_source_exit_has_gradients_to_compare(tmp_path):
    placements.write_placements(tmp_path)
    sources = {"search": {**placements.SETTINGS["sources"]["search"], "own": "click@search"}}
    run = train_run(
        tmp_path,
        "exit",
        schema=placements.schema_at(tmp_path),
        tasks=["click@search", "click@home", "wanted_search@home", "fit_search@home"],
        model={"name": "exit", **placements.SETTINGS, "sources": sources},
        loader={"batch_size": 64},
        trainer={"threads": 1},
    )
    content = diagnose(run, tmp_path, "train", batches=3)["diagnostics"]
    blocks = {pair["block"] for pair in content["gradients"]["pairs"]}
    assert "ipn.towers.search" in blocks  # it learns from rows of both
    assert "ipn.towers.click@home" not in blocks
    assert content["transfer"]["sources"]["search"]["distribution"]["count"] == 96
