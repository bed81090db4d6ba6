"""Every benchmark runs, says what it promises, and compares fairly. Its timings are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from torchrec_xd.benchmark import kinds, peers, step, synthetic
from torchrec_xd.benchmark.commands import app
from torchrec_xd.benchmark.history import compare
from torchrec_xd.benchmark.measure import Spread, alternate, ratio
from torchrec_xd.benchmark.report import cost_figure
from torchrec_xd.benchmark.step import count
from torchrec_xd.errors import UserError

SMALL = ("--batch-size", "64", "--rows-per-table", "100", "--threads", "1", "--repeats", "2")
STEPS = ("--steps", "2")
BASELINE = Path(__file__).with_name("counts.json")


def run(out: Path, *arguments: str) -> dict:
    found = CliRunner().invoke(app, [*arguments, "--json", str(out)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(out.read_text())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


def test_runs_alternate_and_are_compared_pair_by_pair() -> None:
    order = []
    spreads = alternate({"a": lambda: order.append("a") or 4.0, "b": lambda: order.append("b") or 2.0}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert spreads["a"].values == (4.0, 4.0, 4.0)
    assert ratio(Spread((4.0, 9.0, 2.0)), Spread((2.0, 3.0, 2.0))).values == (2.0, 3.0, 1.0)
    assert ratio(Spread((4.0, 9.0, 2.0)), Spread((2.0, 3.0, 2.0))).median == 2.0


@pytest.fixture(autouse=True)
def one_short_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading what the profiler saw takes much longer than the steps."""
    monkeypatch.setattr(step, "profiled", partial(step.profiled, rounds=1))
    monkeypatch.setattr(step, "PROFILED", 2)


@pytest.mark.parametrize("model", synthetic.MODELS)
def test_step_says_where_the_time_goes(out: Path, model: str) -> None:
    content = run(out, "step", "--model", model, *SMALL, *STEPS)
    rows = {row["what"].strip(): row for row in content["rows"]}
    assert {"whole step", "GEMM", "tables: lookup", "tables: backward and update"} <= rows.keys()
    assert content["dense_of_gemm_ceiling"] > 0
    assert content["machine"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert content["command"]


def test_step_writes_a_trace(out: Path) -> None:
    run(out, "step", "--model", "mmoe", *SMALL, *STEPS, "--trace", str(out.with_name("trace.json")))
    events = json.loads(out.with_name("trace.json").read_text())["traceEvents"]
    assert any("addmm" in event.get("name", "") for event in events)


def test_step_counts_the_flops_of_the_model(out: Path) -> None:
    """MMoE on 64 rows, by hand: forward, and twice that backward."""
    content = run(out, "step", "--model", "mmoe", *SMALL, *STEPS)
    [dense] = [row for row in content["rows"] if row["what"].startswith("dense part")]
    flops = dense["TFLOP/s"] * dense["ms"] * 1e9
    experts = 3 * (296 * 1024 + 1024 * 512)  # 20 shared ids, the sequence, two scenes, 64 aligned: 20*8 + 8 + 16 + 64
    assert flops == pytest.approx(64 * 2 * 3 * experts, rel=0.4)


@pytest.mark.parametrize("command", [("train", *STEPS), ("plain", "--model", "exit", "--steps", "1")])
def test_end_to_end_beside_what_it_is_compared_with(out: Path, command: tuple[str, ...]) -> None:
    content = run(out, *command, *SMALL)
    one, other = (row["rows/s"]["values"] for row in content["rows"])
    assert len(one) == len(other) == 2
    key = "train_of_step" if command[0] == "train" else "ratio"
    above, below = (other, one) if command[0] == "train" else (one, other)
    assert content[key]["values"] == pytest.approx([a / b for a, b in zip(above, below, strict=True)])


def test_kinds_of_features_are_held_against_a_step_without_them(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_apart", kinds._milliseconds)
    content = run(out, "kinds", *SMALL, "--repeats", "1", "--steps", "1")
    assert [row["what"] for row in content["rows"]] == [
        "ids, a sequence",
        "+ a vector of 64",
        "+ a bag of 10 ids",
        "+ a weighted bag of 10 ids",
    ]
    assert content["rows"][0]["times plain"]["values"] == [1.0]
    assert all(row["ms"]["median"] > 0 for row in content["rows"])


def test_the_reader_beside_a_scan(out: Path) -> None:
    content = run(out, "reader", "--rows", "4000", "--batch-size", "256", "--repeats", "2")
    assert [row["what"] for row in content["rows"]] == ["plain scan", "batches in order", "batches, shuffled"]
    assert all(row["rows/s"]["median"] > 0 for row in content["rows"])


def test_lookups_beside_plain_bags(out: Path) -> None:
    content = run(out, "lookup", "--tables", "3", *SMALL)
    assert [row["what"] for row in content["rows"]] == [
        "ours",
        "sparse SGD",
        "sparse Adagrad",
        "SparseAdam",
        "dense Adam",
    ]


def test_dense_adam_is_left_out_where_memory_would_end(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec_xd.benchmark.lookup.DENSE_BYTES", 1000)
    content = run(out, "lookup", "--tables", "3", *SMALL)
    assert "dense Adam" not in [row["what"] for row in content["rows"]]


@pytest.mark.slow
def test_scale_runs_each_point_in_processes_of_its_own(out: Path) -> None:
    content = run(out, "scale", "batch", "--largest", "512", "--rounds", "1")
    [row] = content["rows"]
    assert row["batch"] == "512"
    assert row["rows/s"]["median"] > 0


def test_the_report_draws_cost_against_work(tmp_path: Path) -> None:
    speeds = [{"median": 10.0, "low": 8.0, "high": 13.0}, {"median": 5.0, "low": 5.0, "high": 5.0}]
    points = [{"rows": rows, "rows/s": speed} for rows, speed in zip(("100", "1000"), speeds, strict=True)]
    content = {"benchmark": "scale rows", "settings": {"model": "mmoe"}, "rows": points, "command": "the command"}
    [line] = cost_figure(content).data
    assert (line.x, line.y) == ((100, 1000), (10.0, 5.0))
    assert (line.error_y.array, line.error_y.arrayminus) == ((3.0, 0.0), (2.0, 0.0))
    (tmp_path / "a.json").write_text(json.dumps(content))
    page = tmp_path / "page.html"
    found = CliRunner().invoke(app, ["report", str(tmp_path / "a.json"), "--out", str(page)], catch_exceptions=False)
    assert found.exit_code == 0
    assert "the command" in page.read_text()
    assert "10 (8 to 13)" in page.read_text()


@pytest.mark.parametrize("model", ["mmoe", "mkt_pretrain", "exit"])
def test_a_step_does_no_more_work_than_it_used_to(out: Path, model: str) -> None:
    """Counts, not times: more GEMMs, copies or allocations a step than the stored counts is a step back.

    Fewer is a step forward: store the new counts in counts.json.
    """
    content = run(out, "counts", "--model", model)
    stored = json.loads(BASELINE.read_text())
    assert not list(compare(content, {"counts": stored[model], "rows": []}, 0.0))


def test_counts_see_backward_and_copies() -> None:
    x = torch.ones(4, 4, requires_grad=True)
    found = count(lambda: (x @ x).sum().backward())
    assert found["gemms"] == 3
    assert count(lambda: torch.cat([x, x]))["copies"] == 1
    assert count(lambda: x.view(16))["allocations"] == 0


def result(**median: float) -> dict:
    rows = [
        {"what": name, "ms": {"median": value, "low": value * 0.95, "high": value * 1.05}}
        for name, value in median.items()
    ]
    return {"benchmark": "step", "rows": rows, "counts": {"gemms": int(sum(median.values()))}}


def test_history_names_what_got_slower(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result(a=10.0, b=20.0)))
    new.write_text(json.dumps(result(a=15.0, b=20.5)))
    found = CliRunner().invoke(app, ["history", str(new), "--against", str(old)])
    assert found.exit_code == 1
    assert [row["what"] for row in compare(result(a=15.0, b=20.5), result(a=10.0, b=20.0), 0.1)] == ["gemms", "a, ms"]
    assert not list(compare(result(a=10.4, b=19.0), result(a=10.0, b=20.0), 0.1))
    assert CliRunner().invoke(app, ["history", str(old), "--against", str(old)]).exit_code == 0


def test_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model mmo: choose one of mmoe, ple, mkt_pretrain"):
        CliRunner().invoke(app, ["step", "--model", "mmo"], catch_exceptions=False)
    with pytest.raises(UserError, match="no result of a benchmark"):
        CliRunner().invoke(
            app, ["history", str(tmp_path / "a"), "--against", str(tmp_path / "b")], catch_exceptions=False
        )


def test_labels_can_be_learnt_and_are_the_same_for_all(tmp_path: Path) -> None:
    """Our side of `peers`, in this process: two passes over few rows lift the AUC well above chance."""
    synthetic.write_flat(tmp_path, 20_000, 50)
    found = json.loads(_printed(peers.ours, tmp_path, 50, 256, 1, 1.0, 2, "fp32", "fp32"))
    assert found["rows_per_second"] > 0
    assert min(found["auc"].values()) > 0.7


def _printed(call, *arguments) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call(*arguments)
    return printed.getvalue().strip().splitlines()[-1]


def test_peers_are_installed_with_the_torch_that_pip_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel of PyPI calls itself 2.14.1+cu130 when imported; pip finds 2.14.1 alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / peers.LOCK).parent.mkdir()
    (tmp_path / peers.LOCK).touch()
    monkeypatch.setattr(torch, "__version__", f"{version('torch')}+cu999")
    monkeypatch.setattr(peers.venv, "create", lambda folder, **_: Path(folder).mkdir())
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(peers.subprocess, "run", run)
    peers.install()
    assert f"torch=={version('torch')}" in commands[-1]
    peers.install()
    assert len(commands) == 2, "once"


def test_modules_beside_the_peers_worker_hide_none_of_pythons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-rechub imports cProfile, which imports profile, of which this package has one too."""
    (tmp_path / "profile.py").touch()
    (tmp_path / "worker.py").write_text("import cProfile, json; print(json.dumps({'rows_per_second': 1.0}))")
    monkeypatch.setattr(peers, "_python", lambda: Path(sys.executable))
    assert peers._last_line(peers.isolated(tmp_path / "worker.py"), 0) == {"rows_per_second": 1.0}
