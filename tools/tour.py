"""A tour: models trained by the command line, each once, and a table of their metrics."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from torchrec_xd.config import load_config

METRICS = ("auc", "gauc", "logloss", "calibration", "rows", "positives")
Row = dict[str, Any]
screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Model(NamedTuple):
    """A row of the table, and the run behind it."""

    label: str
    run: str
    config: str
    parent: str | None = None
    """The run that it starts from."""


@dataclass(frozen=True)
class Tour:
    """A data set, the models that are compared on it, and what is compared."""

    data: Path
    """Folder of the data set, named like it."""
    task: str
    title: str
    models: tuple[Model, ...]
    groups: str | None = None
    """Slice column whose groups get rows of their own."""
    auxiliary: Mapping[str, str] = field(default_factory=dict)
    """Ending of a task's auxiliary scores -> their name in the table."""
    references: Callable[[Path], list[Row]] = lambda data: []
    """Of the data: rows of models that are no runs."""

    def take(self, out: Path) -> None:
        """Prepare the data, train and measure every model, and compare them on the test period.

        Writes `out/summary.json`: the rows of the table, seconds, and the memory of the largest process.
        """
        start, steps = time.monotonic(), len(self.models) + 1
        step(f"1/{steps} prepare {self.data.name}")
        command("prepare", self.data.name, "--out", self.data)
        rows = []
        for number, model in enumerate(self.models, 2):
            step(f"{number}/{steps} {model.label}")
            rows += self.rows(model.label, self.train(model, out))
        rows += self.references(self.data)
        summary = {
            "rows": rows,
            "seconds": round(time.monotonic() - start, 1),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        }
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        self.show(rows)
        screen.print(f"written to {out / 'summary.json'}", markup=False)

    def train(self, model: Model, out: Path) -> Row:
        """metrics.json of the model's run; trained, resumed or found."""
        run = out / model.run
        assign = [f"init_from={out / model.parent}"] if model.parent else []
        begun = run / "config.yaml"
        if begun.exists() and (
            begun.read_text() != load_config(Path(model.config), assign).dump() or self._older_than_data(begun)
        ):
            screen.print(f"{run}: config or data have changed since; trained anew", markup=False)
            shutil.rmtree(run)
        if (run / "metrics.json").exists():
            screen.print(f"{run}: trained before; reused", markup=False)
        else:
            resume = ["--resume"] if begun.exists() else []
            command("train", model.config, "--run-dir", run, *(part for a in assign for part in ("--set", a)), *resume)
        content: Row = json.loads((run / "metrics.json").read_text())
        return content

    def _older_than_data(self, path: Path) -> bool:
        return path.stat().st_mtime < (self.data / "manifest.json").stat().st_mtime

    def rows(self, label: str, metrics: Row) -> list[Row]:
        """The rows of a run: the task and its auxiliary; all rows, groups of them, and all without weights."""
        found = []
        for ending, name in {"": "", **self.auxiliary}.items():
            key = self.task + ending
            if key not in metrics["eval"]:
                continue
            slices = {"all": metrics["eval"][key]}
            if self.groups is not None:
                slices |= metrics["slices"][key][self.groups]
            if metrics["unweighted"].get(key) != slices["all"]:
                slices |= {"unweighted": metrics["unweighted"][key]} if key in metrics["unweighted"] else {}
            for group, result in slices.items():
                known = {metric: result[metric] for metric in METRICS}
                domain = self.task.partition("@")[2]
                found.append({"model": label + name, "task": self.task, "domain": domain, "slice": group, **known})
        return found

    def show(self, rows: list[Row]) -> None:
        """The table on the screen."""
        table = Table("model", "rows of", title=self.title)
        for metric in METRICS:
            table.add_column(metric, justify="right")
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            last = following is None or following["model"] != row["model"]
            table.add_row(row["model"], row["slice"], *(_text(row[metric]) for metric in METRICS), end_section=last)
        screen.print(table)


def _text(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def step(title: str) -> None:
    """A heading on the screen."""
    screen.rule(title, align="left")


def command(*arguments: str | Path) -> None:
    """Run torchrec-xd; leave with its exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", "torchrec_xd.cli", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
