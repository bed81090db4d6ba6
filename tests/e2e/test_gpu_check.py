"""The check of a GPU machine: what of it a CPU can run is right here, and what it reads of a GPU is read right."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tools.gpu_check import __main__ as check
from tools.gpu_check import kernels, timing
from tools.gpu_check.step import Found, Machine, run_step
from tools.gpu_check.trace import read_trace
from torchrec_xd.errors import UserError

CPU = torch.device("cpu")
NEED_A_GPU = {"cached_tables", "syncs", "overlap"}


@pytest.mark.slow
def test_everything_that_a_cpu_can_run_is_right(tmp_path):
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "tools.gpu_check", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert set(report) == {"device", "versions", "steps"}
    assert list(report["steps"]) == list(check.STEPS)
    assert {name: step["ok"] for name, step in report["steps"].items()} == {
        name: None if name in NEED_A_GPU else True for name in check.STEPS
    }
    assert {"torch", "torchrec", "python"} <= set(report["versions"])
    assert report["steps"]["against_cpu"]["found"]["steps compared"] == 54
    assert report["steps"]["resume"]["found"]["fp16 tables"] == "bit for bit the same"
    assert report["steps"]["scoring"]["found"]["rows"] == 256


def test_what_is_wrong_is_named_and_the_others_still_run(tmp_path, monkeypatch):
    def broken(machine):
        raise RuntimeError("CUDA error: no kernel image is available")

    steps = {"broken": broken, "wrong": lambda machine: Found(False, {"apart": 3.0}), "fine": lambda _: Found(True, {})}
    monkeypatch.setattr(check, "STEPS", steps)
    with pytest.raises(SystemExit) as left:
        check.main(tmp_path / "report.json")
    assert left.value.code == 1
    found = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert {name: step["ok"] for name, step in found.items()} == {"broken": False, "wrong": False, "fine": True}
    assert found["broken"]["found"]["error"] == "RuntimeError: CUDA error: no kernel image is available"
    assert found["broken"]["found"]["at"][-1].startswith("test_gpu_check.py:")
    assert found["wrong"]["found"] == {"apart": 3.0}


def test_an_unknown_step_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--only kernel: no such step; these are: kernels, weights"):
        check.main(tmp_path / "report.json", ["kernel"])
    assert not (tmp_path / "report.json").exists()


def test_an_update_that_is_off_is_found(tmp_path, monkeypatch):
    """As if the kernels stepped by another rate than they were given."""
    monkeypatch.setattr(kernels, "_updated", lambda name, weight, gradient: weight - 0.11 * gradient)
    entry = run_step(kernels.kernels, Machine(CPU, tmp_path))
    assert entry["ok"] is False
    assert "sgd, fp32" in entry["found"]["too large"]


def kernel(start, stop, stream=7, name="gemm", category="kernel"):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": stop - start, "args": {"stream": stream}}


def test_a_trace_says_what_was_copied_next_to_kernels():
    copy = "Memcpy HtoD (Pinned -> Device)"
    trace = read_trace(
        {
            "traceEvents": [
                kernel(0, 10),
                kernel(5, 20, stream=8),  # at the same time
                kernel(30, 40),
                kernel(60, 100),
                kernel(15, 35, stream=20, name=copy, category="gpu_memcpy"),
                kernel(50, 55, stream=20, name="Memcpy HtoD (Pageable -> Device)", category="gpu_memcpy"),
                kernel(0, 1, name="Memcpy DtoH (Device -> Pinned)", category="gpu_memcpy"),
                {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 100, "args": {}},
                {"ph": "M", "name": "process_name"},
            ]
        }
    )
    assert len(trace.kernels) == 4
    assert trace.compute_stream == 7
    first, second = trace.copies_to_device()
    assert (first.pinned, second.pinned) == (True, False)
    assert trace.hidden([first]) == (5 + 5) / 20  # 15 to 20 and 30 to 35
    assert trace.hidden([second]) == 0
    assert trace.hidden([first, second]) == 10 / 25
    assert trace.hidden([]) == 1


def test_lines_at_which_the_cpu_waits_are_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with timing.noted_syncs() as places:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    ((place, count),) = places.items()
    assert place.startswith("e2e/test_gpu_check.py:")
    assert count == 3
    assert Path(__file__).name in place
