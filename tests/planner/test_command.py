"""The command: what it writes, what it prints, how it ends."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import pytest

from torchrec_xd.cli.plan import app
from torchrec_xd.error_boundary import run_command

ROOT = Path(__file__).parents[2]
TABLES = "name,rows,dim,pooling\nuser,30000000,64,1\nitem,90000000,64,20\ncat,2000,32,1\npost,4000000,128,5\n"


class Done(NamedTuple):
    exit_code: int
    output: str
    error: str


@pytest.fixture
def run(tmp_path, capsys):
    """Calls the command as the command line does; `@name` is a file in `tmp_path`."""
    (tmp_path / "tables.csv").write_text(TABLES)

    def call(*words):
        words = [str(tmp_path / word[1:]) if word.startswith("@") else word for word in words]
        with pytest.raises(SystemExit) as left:
            run_command(lambda: app(words))
        return Done(left.value.code, *capsys.readouterr())

    return call


def test_plans_reports_and_compares(run, tmp_path):
    done = run(
        *("make", "--tables", "@tables.csv", "--cluster", "8xH100", "--world-size", "16", "--compare"),
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
    again = run("diff", "@plan.json", "@plan.json")
    assert again.exit_code == 0
    assert "the plans are equal" in again.output


def test_explains(run):
    done = run("make", "--tables", "@tables.csv", "--world-size", "8", "--explain", "item")
    assert done.exit_code == 0
    assert "chosen" in done.output
    assert "row_wise" in done.output


def test_infeasible_ends_with_2_and_says_why(run, tmp_path):
    done = run(
        *("make", "--tables", "@tables.csv", "--world-size", "2", "--hbm", "1", "--ddr", "1", "--json", "@report.json")
    )
    assert done.exit_code == 2
    assert "bytes of" in done.error
    assert "would fit: " in done.error
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["feasible"] is False
    assert report["slowest_rank_ms"] is None
    assert report["reasons"]
    assert report["would_fit"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("make",), "give either a config"),
        (("make", "@run.yaml", "--tables", "@tables.csv"), "give either a config"),
        (("make", "--tables", "@none.csv"), "cannot be read"),
        (("make", "--tables", "@tables.csv", "--cluster", "abacus"), "unknown cluster 'abacus'"),
        (("make", "--tables", "@tables.csv", "--world-size", "9"), "no multiple of ranks_per_node 8"),
        (("make", "--tables", "@tables.csv", "--measure-pooling"), "needs a config"),
        (("make", "--tables", "@tables.csv", "--explain", "nobody"), "no table 'nobody'"),
        (("check", "@run"), "is no finished run"),
        (("diff", "@tables.csv", "@tables.csv"), "not valid JSON"),
        (("calibrate", "@here.yaml", "--cluster", "abacus"), "unknown cluster 'abacus'"),
    ],
)
def test_mistakes_end_with_2_and_one_message(run, words, text):
    done = run(*words)
    assert done.exit_code == 2
    assert done.output == ""
    assert done.error.startswith("error: ")
    assert text in done.error


@pytest.mark.parametrize("words", [("make", "--tables", "@tables.csv"), ("make", "--tables", "@none.csv")])
def test_other_peoples_logging_is_left_as_it_was(run, words, monkeypatch):
    logger = logging.getLogger("torchrec")
    monkeypatch.setattr(logger, "level", logging.INFO)
    run(*words)
    assert logger.level == logging.INFO


def test_files_of_constraints_and_means(run, tmp_path):
    (tmp_path / "pins.yaml").write_text("constraints:\n- {tables: [user], ranks: [3]}\n")
    (tmp_path / "means.yaml").write_text("user: 7.5\n")
    done = run(
        *("make", "--tables", "@tables.csv", "--constraints", "@pins.yaml", "--pooling", "@means.yaml"),
        *("--out", "@plan.json", "--batch-size", "64"),
    )
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    (user,) = [table for table in plan["tables"] if table["name"] == "user"]
    assert user["ranks"] == [3]
    assert plan["batch_size"] == 64
    (tmp_path / "means.yaml").write_text("user: many\n")
    both = run("make", "--tables", "@tables.csv", "--constraints", "@pins.yaml", "--pooling", "@means.yaml")
    assert "means.yaml: 'pooling.user'" in both.error
    (tmp_path / "pins.yaml").write_text("constraints:\n- {tables: [user], ranks: [3]}\n- {tables: [user]}\n")
    assert "pins.yaml:3: " in run("make", "--tables", "@tables.csv", "--constraints", "@pins.yaml").error
    (tmp_path / "means.yaml").write_text("nobody: 7.5\n")
    assert "no feature 'nobody'" in run("make", "--tables", "@tables.csv", "--pooling", "@means.yaml").error


def test_a_schema_is_planned_under_the_models_paths(run, tmp_path):
    done = run("make", str(ROOT / "configs/schemas/cj_feed.yaml"), "--cluster", "cpu", "--out", "@plan.json")
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {table["path"] for table in plan["tables"]} <= {"embeddings.bags", "embeddings.sequences"}


def test_a_run_config_is_planned_as_its_run_allows(run, tmp_path):
    done = run("make", str(ROOT / "configs/single_cj.yaml"), "--cluster", "cpu", "--out", "@plan.json")
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {table["sharding_type"] for table in plan["tables"]} == {"table_wise"}
    assert {table["kernel"] for table in plan["tables"]} == {"fused"}
    assert plan["batch_size"] == 2048
