"""`predicted`: what is compared with what. Its timings are not looked at."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.planner_cases import cpus, gpus
from torchrec_xd.benchmark import predicted as module
from torchrec_xd.benchmark.commands import app
from torchrec_xd.benchmark.predicted import compared, estimate
from torchrec_xd.benchmark.workbench import synthetic_run
from torchrec_xd.errors import UserError
from torchrec_xd.planner.step.estimate import StepEstimate

STEP = StepEstimate(
    **{"lookups_ms": 2.0, "exchange_ms": 3.0, "compute_ms": 4.0, "memory_ms": 1.0, "all_reduce_ms": 0.5},
    **{"exposed_ms": 0.5, "launches_ms": 1.0, "input_ms": 0.0, "reader_ms": 0.0, "step_ms": 11.5, "binds": "exchange"},
)


def content(whole=23.0, lookup=1.0, update=3.0, gemm=4.0, copies=2.0):
    """What `step --json` writes, in short."""
    spread = {"median": whole, "low": whole, "high": whole, "values": [whole]}
    kinds = {"tables: lookup": lookup, "tables: backward and update": update, "GEMM": gemm, "copies and casts": copies}
    rows = [{"what": "whole step", "ms": spread}, *({"what": f"  {name}", "ms": ms} for name, ms in kinds.items())]
    return {"rows": [*rows, {"what": "dense part (all but tables and exchange)", "ms": 99.0}]}


def test_parts_are_compared_with_their_own_kind():
    lines = {line["what"]: line for line in compared("mmoe", 2, STEP, [content(), content(whole=46.0)])}
    assert list(lines) == [
        f"mmoe on 2: {p}" for p in ("whole step", "lookups", "dense and launches", "exchange", "all-reduce")
    ]
    whole, lookups, dense, exchange, _ = lines.values()
    assert (whole["predicted ms"], whole["measured ms"].values, whole["ratio"].values) == (
        11.5,
        (23.0, 46.0),
        (0.5, 0.25),
    )
    assert (lookups["predicted ms"], lookups["measured ms"].median) == (2.0, 4.0)
    assert (dense["predicted ms"], dense["measured ms"].median) == (6.0, 6.0)
    assert exchange == {"what": "mmoe on 2: exchange", "predicted ms": 3.0}


def test_the_estimate_is_of_the_run(monkeypatch):
    cluster = cpus(2, fp32_tflops=0.1, gemm_efficiency=1, launch_us=5)
    with synthetic_run("mmoe", 100, 64, "fp32", "fp32") as config:
        one, two = (estimate(config, cluster, ranks) for ranks in (1, 2))
    assert one.exchange_ms == one.all_reduce_ms == 0
    assert two.exchange_ms > 0 < two.all_reduce_ms
    assert one.dense_ms == pytest.approx(two.dense_ms)
    # MMoE's experts on 64 rows, forward and twice that backward, at 1e8 FLOPs per ms.
    assert one.compute_ms == pytest.approx(64 * 2 * 3 * 3 * (296 * 1024 + 1024 * 512) / 1e8, rel=0.4)


def test_the_command(tmp_path, monkeypatch):
    asked = []

    def run_step(point, model, precision, dtype, *more):
        asked.append((model, point["ranks"], point["threads"], precision, more))
        return content()

    monkeypatch.setattr(module, "run_step", run_step)
    profile, out = tmp_path / "here.yaml", tmp_path / "out.json"
    profile.write_text(yaml.safe_dump(cpus(2, fp32_tflops=0.1, launch_us=5).model_dump(mode="json")))
    words = ["predicted", "--models", "mmoe", "--profile", str(profile), "--rounds", "2", "--repeats", "1"]
    words += ["--rows-per-table", "100", "--batch-size", "64", "--json", str(out)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert [ranks for _, ranks, *_ in asked] == [1, 2, 4, 4, 2, 1]
    assert asked[0] == ("mmoe", 1, 1, "fp32", ("--repeats", "1"))
    written = json.loads(out.read_text())
    assert written["cluster"]["fp32_tflops"] == 0.1
    whole = [row for row in written["rows"] if row["what"].endswith("whole step")]
    assert [row["measured ms"]["values"] for row in whole] == [[23.0, 23.0]] * 3


def test_a_profile_of_gpus_is_refused(tmp_path):
    profile = tmp_path / "gpus.yaml"
    profile.write_text(yaml.safe_dump(gpus(2).model_dump(mode="json")))
    with pytest.raises(UserError, match=r"a profile of GPUs; this measures CPU ranks"):
        CliRunner().invoke(app, ["predicted", "--profile", str(profile)], catch_exceptions=False)
    with pytest.raises(UserError, match="--model mmo: choose one of"):
        CliRunner().invoke(app, ["predicted", "--models", "mmo"], catch_exceptions=False)
