"""`scale`: how cost grows with ranks, batch size and table rows; each point is a process group of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchrec_xd.benchmark.measure import Json, Result, Spread
from torchrec_xd.benchmark.step import Dtype, ModelOption, Precision, known
from torchrec_xd.errors import UserError

POINTS: dict[str, list[dict[str, int]]] = {
    "weak": [{"ranks": 1, "threads": 1, "batch": 4096}, {"ranks": 2, "threads": 1, "batch": 4096}],
    "strong": [
        {"ranks": 1, "threads": 1, "batch": 4096},
        {"ranks": 2, "threads": 1, "batch": 2048},
        {"ranks": 1, "threads": 2, "batch": 4096},
    ],
    "batch": [{"batch": size} for size in (512, 1024, 2048, 4096, 8192, 16_384)],
    "rows": [{"rows": rows} for rows in (10_000, 100_000, 1_000_000, 10_000_000)],
}


def scale(
    axis: Annotated[Literal["weak", "strong", "batch", "rows"], typer.Argument(help="What grows.")],
    model: ModelOption = "mmoe",
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    rounds: Annotated[int, typer.Option(min=1, help="Times that all points are run, in turns.")] = 3,
    largest: Annotated[int, typer.Option(help="Leave out points with more ranks, rows or batch than this.")] = 2**40,
    out: Json = None,
) -> None:
    """Rows per second along one axis; weak: every rank keeps its batch, strong: they share one."""
    known(model)
    points = [point for point in POINTS[axis] if max(point.get("batch", 0), point.get("rows", 0)) <= largest]
    values: list[list[float]] = [[] for _ in points]
    for turn in range(rounds):
        order = list(enumerate(points))
        for i, point in order if turn % 2 == 0 else reversed(order):
            values[i].append(_measure(point, model, precision, dtype))
    result = Result(f"scale {axis}", {"model": model, "precision": precision, "tables": dtype})
    result.rows = [
        {**{key: str(value) for key, value in point.items()}, "rows/s": Spread(tuple(found))}
        for point, found in zip(points, values, strict=True)
    ]
    result.report(out)


def _measure(point: dict[str, int], model: str, precision: str, dtype: str) -> float:
    """Rows per second over all ranks."""
    speed: float = run_step(point, model, precision, dtype)["rows_per_second"]["median"]
    return speed


def run_step(point: dict[str, int], model: str, precision: str, dtype: str, *more: str) -> dict[str, Any]:
    """What a `step` in processes of its own finds.

    Args:
        point: `ranks`, `threads`, `batch` and `rows` where they are not the defaults.
        model: its name.
        precision: of the dense part.
        dtype: of the tables.
        more: further words of the command line.

    Raises:
        UserError: the command failed; with the end of what it said.
    """
    ranks, threads = point.get("ranks", 1), point.get("threads", 0)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        found = Path(folder) / "step.json"
        command = [sys.executable, *launcher, "-m", "torchrec_xd.benchmark", "step", "--model", model]
        command += ["--precision", precision, "--dtype", dtype, "--threads", str(threads), "--json", str(found)]
        command += ["--batch-size", str(point.get("batch", 4096))]
        command += ["--rows-per-table", str(point.get("rows", 100_000)), *more]
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        content: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return content
