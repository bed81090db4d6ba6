"""Measure the planner on random table sets: `python -m tools.plan_benchmark --out FILE`; each case is a process."""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

CASES = ((60, 64), (200, 64), (500, 128), (1000, 1024))
"""Tables and ranks."""
CLUSTER = "torchrec-defaults"

app = typer.Typer(add_completion=False)


def write_tables(path: Path, count: int, seed: int) -> None:
    """`count` tables of 10^4 to 10^8 rows, 32 to 256 wide, with 1 to 50 ids per sample."""
    draw = random.Random(seed)  # noqa: S311 - test data
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "rows", "dim", "pooling"])
        for i in range(count):
            rows = int(10 ** draw.uniform(4, 8))
            writer.writerow([f"t{i}", rows, draw.choice([32, 64, 128, 256]), draw.choice([1, 1, 5, 20, 50])])


def measure(tables: int, ranks: int, seed: int, *, compare: bool) -> dict[str, Any]:
    """The command's own report on one case, with the whole process's wall time and the machine's load before it."""
    with tempfile.TemporaryDirectory() as folder:
        table_list, report = Path(folder, "tables.csv"), Path(folder, "report.json")
        write_tables(table_list, tables, seed)
        words = ["--tables", str(table_list), "--cluster", CLUSTER, "--world-size", str(ranks), "--json", str(report)]
        load = os.getloadavg()[0]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tools.plan", "make", *words, *(["--compare"] if compare else [])],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - began
        return {**json.loads(report.read_text()), "seed": seed, "wall_seconds": wall, "load_before": load}


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Where to write the measurements (JSON).")],
    seeds: Annotated[int, typer.Option(help="Table sets per case.")] = 3,
    compare_up_to: Annotated[int, typer.Option(help="Also run torchrec's planner for so many ranks; 0: never.")] = 0,
) -> None:
    """Run all cases, one process at a time, and write what they took and found."""
    runs = []
    for tables, ranks in CASES:
        for seed in range(seeds):
            runs.append(measure(tables, ranks, seed, compare=seed == 0 and ranks <= compare_up_to))
            print(json.dumps(runs[-1]), flush=True)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({"machine": machine, "cluster": CLUSTER, "runs": runs}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    app()
