"""The tour: real data in, a table of models out. What an earlier tour has made is reused.

python -m tools.quickstart
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from tools.references import reference_rows
from torchrec_xd.config import load_config

DATA = Path("data/cj_feed")
RUNS = Path("runs/quickstart")
TASK = "redeemed@coupon"
METRICS = ("auc", "gauc", "logloss", "calibration", "rows", "positives")


class Model(NamedTuple):
    """A row of the table, and the run behind it."""

    label: str
    run: str
    config: str
    begins_with: str | None = None


MODELS = (
    Model("MKT stage 1 (w/o TEM)", "mkt_pretrain", "configs/mkt_cj_pretrain.yaml"),
    Model("MKT", "mkt_finetune", "configs/mkt_cj_finetune.yaml", begins_with="mkt_pretrain"),
    Model("single domain", "single", "configs/single_cj.yaml"),
)
screen = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def tour(out: Annotated[Path, typer.Option(help="Folder of the runs and of summary.json.")] = RUNS) -> None:
    """Prepare the data, train and measure every model, and compare them on the test period."""
    start = time.monotonic()
    step(f"1/{len(MODELS) + 2} prepare {DATA.name}")
    command("prepare", DATA.name, "--out", DATA)
    rows = []
    for number, model in enumerate(MODELS, 2):
        step(f"{number}/{len(MODELS) + 2} {model.label}")
        rows += model_rows(model.label, train(model, out))
    step(f"{len(MODELS) + 2}/{len(MODELS) + 2} references")
    rows += reference_rows(DATA)
    summary = {
        "rows": rows,
        "seconds": round(time.monotonic() - start, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show(rows, out)


def train(model: Model, out: Path, seed: int = 0) -> dict[str, Any]:
    """metrics.json of the model's run; trained, resumed or found."""
    run = out / model.run
    assign = [f"seed={seed}", *([f"init_from={out / model.begins_with}"] if model.begins_with else [])]
    begun = run / "config.yaml"
    if begun.exists() and (
        begun.read_text() != load_config(Path(model.config), assign).dump() or older_than_data(begun)
    ):
        screen.print(f"{run}: config or data have changed since; trained anew", markup=False)
        shutil.rmtree(run)
    if (run / "metrics.json").exists():
        screen.print(f"{run}: trained before; reused", markup=False)
    else:
        resume = ["--resume"] if begun.exists() else []
        command("train", model.config, "--run-dir", run, *(part for a in assign for part in ("--set", a)), *resume)
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def older_than_data(path: Path) -> bool:
    """Whether the data set was prepared after `path` was written."""
    return path.stat().st_mtime < (DATA / "manifest.json").stat().st_mtime


def model_rows(label: str, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The target's rows of a run: all coupons, then campaigns of Type A and of Types B and C."""
    domain = TASK.partition("@")[2]
    slices = {"all": metrics["eval"][TASK], **metrics["slices"][TASK]["campaign_type"]}
    return [
        {
            "model": label,
            "task": TASK,
            "domain": domain,
            "slice": name,
            **{metric: result[metric] for metric in METRICS},
        }
        for name, result in slices.items()
    ]


def show(rows: list[dict[str, Any]], out: Path) -> None:
    """The table on the screen."""
    table = Table("model", "campaigns", title="coupons redeemed, test period")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for row in rows:
        numbers = [
            "–" if row[m] is None else f"{row[m]:.4f}" if isinstance(row[m], float) else f"{row[m]:,}" for m in METRICS
        ]
        table.add_row(row["model"], row["slice"], *numbers, end_section=row["slice"] == "B+C")
    screen.print(table)
    screen.print(f"written to {out / 'summary.json'}", markup=False)


def step(title: str) -> None:
    """A heading on the screen."""
    screen.rule(title, align="left")


def command(*arguments: str | Path) -> None:
    """Run torchrec-xd; leave with its exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", "torchrec_xd.cli", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    typer.run(tour)
