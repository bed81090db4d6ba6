"""When a GPU copied and when it computed, from a trace of torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """A kernel or a copy; times in microseconds."""

    name: str
    start: float
    stop: float
    stream: int

    @property
    def pinned(self) -> bool:
        """Of a copy from the host: whether its memory is pinned."""
        return "Pinned" in self.name


@dataclass(frozen=True)
class Trace:
    """Kernels and copies of some steps."""

    kernels: list[Event]
    copies: list[Event]

    @property
    def compute_stream(self) -> int:
        """The stream on which kernels ran longest."""
        spent: Counter[int] = Counter()
        for kernel in self.kernels:
            spent[kernel.stream] += int(kernel.stop - kernel.start)
        return spent.most_common(1)[0][0]

    def copies_to_device(self) -> list[Event]:
        """From the host to the GPU."""
        return [copy for copy in self.copies if "HtoD" in copy.name]

    def hidden(self, copies: Sequence[Event]) -> float:
        """Share of the time of some copies in which kernels ran too; 1 where there is no copy."""
        theirs, kernels = united(copies), united(self.kernels)
        both = sum(
            max(0.0, min(stop, kernel_stop) - max(start, kernel_start))
            for start, stop in theirs
            for kernel_start, kernel_stop in kernels
        )
        return both / _length(theirs) if theirs else 1.0


def united(events: Sequence[Event]) -> list[tuple[float, float]]:
    """The times at which at least one of the events ran, as spans in order that do not touch."""
    spans: list[tuple[float, float]] = []
    for start, stop in sorted((event.start, event.stop) for event in events):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _length(spans: Sequence[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in spans)


def read_trace(content: dict[str, Any]) -> Trace:
    """From the content of a file that `export_chrome_trace` wrote."""
    events = [event for event in content["traceEvents"] if event.get("ph") == "X"]

    def of(category: str) -> list[Event]:
        return [
            Event(e["name"], e["ts"], e["ts"] + e["dur"], e["args"]["stream"]) for e in events if e["cat"] == category
        ]

    return Trace(of("kernel"), of("gpu_memcpy"))
