"""Timings on a GPU, without one: torch.cuda's clock is replaced, and profiler events are made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent, Kernel

from torchrec_xd.benchmark.measure import seconds
from torchrec_xd.benchmark.profile import Profile, activities, profile_of, profiled
from torchrec_xd.benchmark.step import gpu_rows, phases

GPU = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of torch.cuda, in order."""
    asked: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0

        def record(self) -> None:
            asked.append("record")
            self.at = len(asked)

        def elapsed_time(self, end: Event) -> float:
            assert asked[-1] == "synchronize"  # an event has no time before the GPU has reached it
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return asked


def test_the_gpus_own_clock_starts_when_earlier_work_is_done(calls: list[str]) -> None:
    assert seconds(lambda: calls.append("run")) == 2.0
    assert calls == ["synchronize", "record", "run", "record", "synchronize"]


def test_without_a_gpu_the_wall_clock_counts(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    times = iter([5.0, 8.5])
    monkeypatch.setattr("torchrec_xd.benchmark.measure.time.perf_counter", lambda: next(times))
    assert seconds(lambda: calls.append("run")) == 3.5
    assert calls == ["run"]


def events() -> EventList:
    """Two steps: a lookup of 30 us, a product of 50, 10 of them at once with the lookup, and a copy of 5."""
    found = []
    for step, begin in enumerate((1000.0, 2000.0)):
        for name, start, took, kernel in (
            ("fbgemm::lookup", 0.0, 30.0, "lookup_kernel"),
            ("aten::mm", 20.0, 50.0, "gemm_kernel"),
            ("aten::copy_", 100.0, 5.0, "Memcpy HtoD (Pinned -> Device)"),
        ):
            operator = FunctionEvent(10 * step, name, 0, begin, begin + 400, use_device="cuda")
            operator.kernels.append(Kernel(kernel, 0, took))
            at = begin + start
            found += [
                operator,
                FunctionEvent(1, kernel, 0, at, at + took, use_device="cuda", device_type=DeviceType.CUDA),
            ]
        note = FunctionEvent(
            2, "tables: lookup", 0, begin, begin + 900, use_device="cuda", device_type=DeviceType.CUDA,
            is_user_annotation=True,
        )  # fmt: skip
        found += [note, FunctionEvent(3, "cudaLaunchKernel", 0, begin, begin + 7, use_device="cuda")]
    return EventList(found, use_device="cuda")


def test_on_a_gpu_the_time_of_the_kernels_counts() -> None:
    profile = profile_of(events(), steps=2, gpu=True)
    assert profile == Profile(2, {"fbgemm::lookup": 60.0, "aten::mm": 100.0, "aten::copy_": 10.0}, 4, 150.0)
    rows = {row["what"].strip(): (row["ms"], row["share"]) for row in phases(profile)}
    assert rows == {"GEMM": (0.05, "59%"), "tables: lookup": (0.03, "35%"), "copies and casts": (0.005, "6%")}


def test_how_busy_the_gpu_is() -> None:
    """75 us of a step of 300, which starts two kernels."""
    rows, more = gpu_rows(profile_of(events(), steps=2, gpu=True), step_seconds=300e-6)
    assert more == {"gpu_busy": pytest.approx(0.25), "kernels_per_step": 2.0}
    assert rows == [
        {"what": "GPU busy", "ms": 0.075, "share": "25%"},
        {"what": "kernels of a step", "per step": "2"},
    ]


def test_on_a_cpu_its_own_time_counts_as_before() -> None:
    with torch.profiler.profile(activities=activities(torch.device("cpu"))) as profiler:
        torch.ones(8, 8) @ torch.ones(8, 8)
    expected = {e.key: e.self_cpu_time_total for e in profiler.key_averages()}
    assert profile_of(profiler.events(), steps=1, gpu=False) == Profile(1, expected, 0, 0.0)
    assert gpu_rows(Profile(1, expected, 0, 0.0), 1.0) == ([], {})


def test_the_gpu_is_profiled_where_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Profiler:
        def __init__(self, activities: list[object]) -> None:
            asked.append(activities)

        def __enter__(self) -> Profiler:
            return self

        def __exit__(self, *_: object) -> None:
            asked.append("done")

        def events(self) -> EventList:
            return events()

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("synchronize"))
    kinds = torch.profiler.ProfilerActivity
    assert profiled(lambda: asked.append("run"), 2, GPU, rounds=1).kernels == 4
    assert asked == ["synchronize", [kinds.CPU, kinds.CUDA], "run", "synchronize", "done"]
    asked.clear()
    profiled(lambda: asked.append("run"), 2, torch.device("cpu"), rounds=1)
    assert asked == [[kinds.CPU], "run", "done"]
