"""What every benchmark has in common: alternating runs, medians with their spread, and a record of the machine.

Timings here swing by tens of percent with whatever else the machine does. So whatever is compared is run in turns, and
compared pair by pair: the ratio of two neighbouring runs sees the same weather.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from torchrec_xd.atomic_write import write_json
from torchrec_xd.writable import check_output_file

screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _writable(path: Path | None) -> Path | None:
    if path is not None:
        check_output_file(path, "--json")
    return path


Json = Annotated[Path | None, typer.Option("--json", help="Write everything here too.", callback=_writable)]
Repeats = Annotated[int, typer.Option(min=1, help="Measurements of each; the median and the spread are reported.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice to torch.")]
RowsPerTable = Annotated[int, typer.Option(min=2, help="Rows of each table.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Rows of a batch, per rank.")]


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the values lie below."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(min(self.values))} to {short(max(self.values))})"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "values": list(self.values),
        }


def alternate(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """Each run `repeats` times, in turns, every second round in reverse: a drift of the machine hits all alike."""
    values: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            values[name].append(runs[name]())
    return {name: Spread(tuple(found)) for name, found in values.items()}


def ratio(above: Spread, below: Spread) -> Spread:
    """Pair by pair."""
    return Spread(tuple(a / b for a, b in zip(above.values, below.values, strict=True)))


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, work that it left to the GPU included, and none that was left to it before.

    On a GPU by its own clock, which is that of the current stream.
    """
    if not torch.cuda.is_available():
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


@dataclass
class Result:
    """What a benchmark found."""

    benchmark: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per line of the table; a Spread where something was measured repeatedly."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further keys of the JSON file."""

    def report(self, path: Path | None) -> None:
        """Print the table; write everything to `path` where one is given."""
        table = Table(title=f"{self.benchmark}: " + ", ".join(f"{k} {v}" for k, v in self.settings.items()))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        screen.print(table)
        if path is not None:
            write_json(path, self.record(), indent=1)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            **{key: value.record() if isinstance(value, Spread) else value for key, value in self.more.items()},
            "settings": self.settings,
            "rows": [
                {key: value.record() if isinstance(value, Spread) else value for key, value in row.items()}
                for row in self.rows
            ],
            "command": " ".join(sys.orig_argv),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
        }


def machine() -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was."""
    cpu = torch.cpu.get_capabilities()
    return {
        "cpu": cpu.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "bf16": [name for name in ("amx_bf16", "avx512_bf16") if cpu.get(name)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "pyarrow")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return short(value) if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """As tables show it: whole from 100 on, else three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
