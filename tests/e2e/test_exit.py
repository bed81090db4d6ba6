"""EXIT through the real command: metrics with its views, its report, its parts as Parquet."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from tests.support.commands import command
from tests.support.placements import SETTINGS, TASKS, schema_at, write_placements


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exit")
    write_placements(folder)
    content = {
        "schema": schema_at(folder),
        "domains": ["home"],
        "model": {"name": "exit", **SETTINGS, "widths": [8, 4], "scene_widths": [4]},
        "loader": {"batch_size": 64},
        "trainer": {"epochs": 2, "threads": 1},
        "metrics": {"slices": {"hour": {"night": [0, 1, 2, 3], "day": [12, 13]}}},
    }
    (folder / "exit.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    command("train", folder / "exit.yaml", "--run-dir", folder / "run")
    return folder / "run"


def test_metrics_are_of_the_whole_prediction_and_its_parts_weighted_and_not(run):
    content = json.loads((run / "metrics.json").read_text())
    assert list(content["eval"]) == [*TASKS, "click@home/target"]
    assert list(content["unweighted"]) == list(content["eval"])
    assert content["eval"]["click@home"]["rows"] == 320
    assert content["slices"]["click@home/target"]["hour"]["day"]["rows"] < 100


def test_the_report_shows_what_passes(run, tmp_path):
    command("evaluate", run, "--json", tmp_path / "report.json", "--report", tmp_path / "report.html")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["eval"] == json.loads((run / "metrics.json").read_text())["eval"]
    page = (tmp_path / "report.html").read_text()
    for said in ("By slot", "By place", "P_tr from search", "click@home/target", "every row counting once"):
        assert said in page


def test_parts_are_written_untruncated(run, tmp_path):
    rows = run.parent / "home" / "test.parquet"
    command("score", run, rows, "--domain", "home", "--out", tmp_path / "parts.parquet", "--parts")
    scored, given = pq.read_table(tmp_path / "parts.parquet"), pq.read_table(rows)
    names = [*TASKS, "click@home/target"]
    assert scored.column_names == ["user", *(f"prob_{task}" for task in TASKS), *(f"score_{name}" for name in names)]
    score = {name: scored[f"score_{name}"].to_numpy() for name in names}
    whole = score["click@home/target"] + sum(
        score[f"wanted_{k}@home"] * score[f"fit_{k}@home"] for k in ("search", "map")
    )
    np.testing.assert_allclose(score["click@home"], whole, rtol=1e-5)
    assert score["click@home"].max() > 1
    np.testing.assert_array_equal(scored["prob_click@home"].to_numpy(), score["click@home"].clip(0, 1))
    auc = roc_auc_score(given["click"].to_numpy(), score["click@home"], sample_weight=given["weight"].to_numpy())
    assert auc == pytest.approx(json.loads((run / "metrics.json").read_text())["eval"]["click@home"]["auc"], abs=1e-6)
