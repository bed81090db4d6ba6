"""The command: what it writes, what it prints, how it ends."""

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.plan import app

ROOT = Path(__file__).parents[2]
TABLES = "name,rows,dim,pooling\nuser,30000000,64,1\nitem,90000000,64,20\ncat,2000,32,1\npost,4000000,128,5\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "tables.csv").write_text(TABLES)

    def call(*words):
        words = [str(tmp_path / word[1:]) if word.startswith("@") else word for word in words]
        return CliRunner().invoke(app, words)

    return call


def test_plans_reports_and_compares(run, tmp_path):
    done = run(
        *("--tables", "@tables.csv", "--cluster", "8xH100", "--world-size", "16", "--compare"),
        *("--out", "@plan.json", "--json", "@report.json", "--html", "@plan.html"),
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["feasible"] is True
    assert (report["tables"], report["world_size"]) == (4, 16)
    assert report["gap"] == pytest.approx(report["slowest_rank_ms"] / report["lower_bound_ms"] - 1)
    assert 0 < report["seconds"] < 60
    assert report["peak_rss_mb"] > 50
    assert report["slowest_rank_ms"] <= report["default"]["slowest_rank_ms"] * (1 + 1e-9)
    assert "no plan can beat" in done.output
    assert "torchrec's default" in done.output
    assert (tmp_path / "plan.json").exists()
    assert (tmp_path / "plan.html").exists()
    again = run("--diff", "@plan.json", "@plan.json")
    assert again.exit_code == 0
    assert "the plans are equal" in again.output


def test_explains(run):
    done = run("--tables", "@tables.csv", "--world-size", "8", "--explain", "item")
    assert done.exit_code == 0
    assert "chosen" in done.output
    assert "row_wise" in done.output


def test_infeasible_ends_with_2_and_says_why(run, tmp_path):
    done = run("--tables", "@tables.csv", "--world-size", "2", "--hbm", "1", "--ddr", "1", "--json", "@report.json")
    assert done.exit_code == 2
    assert "bytes of" in done.output
    assert "would fit: " in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["feasible"] is False
    assert report["slowest_rank_ms"] is None
    assert report["reasons"]
    assert report["would_fit"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "give either a config"),
        (("--tables", "@none.csv"), "cannot be read"),
        (("--tables", "@tables.csv", "--cluster", "abacus"), "unknown cluster 'abacus'"),
        (("--tables", "@tables.csv", "--world-size", "9"), "no multiple of ranks_per_node 8"),
        (("--tables", "@tables.csv", "--measure-pooling"), "needs a config"),
        (("--tables", "@tables.csv", "--explain", "nobody"), "no table 'nobody'"),
        (("--tables", "@tables.csv", "--check", "@run"), "--check is done instead of planning; leave out: --tables"),
        (
            ("--check", "@run", "--calibrate", "@cpu.yaml"),
            "--check is done instead of planning; leave out: --calibrate",
        ),
        (("--check", "@run"), "is no finished run"),
        (("--diff", "@tables.csv", "@tables.csv"), "not valid JSON"),
    ],
)
def test_mistakes_end_with_2_and_one_message(run, words, text):
    done = run(*words)
    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("words", [("--tables", "@tables.csv"), ("--tables", "@none.csv")])
def test_other_peoples_logging_is_left_as_it_was(run, words, monkeypatch):
    logger = logging.getLogger("torchrec")
    monkeypatch.setattr(logger, "level", logging.INFO)
    run(*words)
    assert logger.level == logging.INFO


def test_files_of_wishes_and_means(run, tmp_path):
    (tmp_path / "wishes.yaml").write_text("constraints:\n- {tables: [user], ranks: [3]}\n")
    (tmp_path / "means.yaml").write_text("user: 7.5\n")
    done = run(
        *("--tables", "@tables.csv", "--constraints", "@wishes.yaml", "--pooling", "@means.yaml"),
        *("--out", "@plan.json", "--batch-size", "64"),
    )
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    (user,) = [table for table in plan["tables"] if table["name"] == "user"]
    assert user["ranks"] == [3]
    assert plan["batch_size"] == 64
    (tmp_path / "means.yaml").write_text("user: many\n")
    both = run("--tables", "@tables.csv", "--constraints", "@wishes.yaml", "--pooling", "@means.yaml")
    assert "means.yaml: 'pooling.user'" in both.output
    (tmp_path / "wishes.yaml").write_text("constraints:\n- {tables: [user], ranks: [3]}\n- {tables: [user]}\n")
    assert "wishes.yaml:3: " in run("--tables", "@tables.csv", "--constraints", "@wishes.yaml").output
    (tmp_path / "means.yaml").write_text("nobody: 7.5\n")
    assert "no feature 'nobody'" in run("--tables", "@tables.csv", "--pooling", "@means.yaml").output


def test_a_schema_is_planned_under_the_models_paths(run, tmp_path):
    done = run(str(ROOT / "configs/schemas/cj_feed.yaml"), "--cluster", "cpu", "--out", "@plan.json")
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {table["path"] for table in plan["tables"]} <= {"embeddings.bags", "embeddings.sequences"}


def test_a_run_config_is_planned_as_its_run_allows(run, tmp_path):
    done = run(str(ROOT / "configs/single_cj.yaml"), "--cluster", "cpu", "--out", "@plan.json")
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {table["sharding_type"] for table in plan["tables"]} == {"table_wise"}
    assert {table["kernel"] for table in plan["tables"]} == {"fused"}
    assert plan["batch_size"] == 2048
