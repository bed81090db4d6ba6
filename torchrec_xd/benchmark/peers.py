"""`peers`: the same MMoE on the same rows in ours and in other libraries, in turns, and whether all of them learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import torch
import typer

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import (
    BatchSize,
    Json,
    Result,
    RowsPerTable,
    Threads,
    alternate,
    ratio,
    screen,
)
from torchrec_xd.benchmark.step import Dtype, Precision
from torchrec_xd.benchmark.workbench import Workbench, workbench
from torchrec_xd.errors import UserError
from torchrec_xd.training.split_evaluation import SplitEvaluation

PACKAGES = {"torch-rechub": "torch-rechub==0.9.0", "fuxictr": "fuxictr==2.3.10"}
ENVIRONMENT = Path(".venv-peers")
LOCK = Path("requirements/cpu.lock")
AUC_ROWS, AUC_TABLE = 400_000, 100_000
"""Training rows and largest table of the check that everybody learns."""


def peers(
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 4096,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    threads: Threads = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is measured, in turns.")] = 5,
    limit: Annotated[float, typer.Option("--seconds", help="Training time of one measurement.")] = 15.0,
    check_auc: Annotated[bool, typer.Option(help="Also train each once over all rows and measure its AUC.")] = True,
    out: Json = None,
) -> None:
    """MMoE, 30 features x 8, 3 experts, 2 tasks: rows per second against torch-rechub and FuxiCTR.

    Ours reads Parquet as it trains, the others get batches that lie in memory; each measurement is a process.
    """
    install()
    settings = {"rows per table": rows_per_table, "batch": batch_size, "precision": precision, "tables": dtype}
    ours = ["--precision", precision, "--dtype", dtype]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        root = Path(folder)
        synthetic.write_flat(root / "speed", 64 * batch_size, rows_per_table)

        def measured(name: str, where: Path, rows: int, passes: int) -> dict[str, Any]:
            numbers = [str(where), str(rows), str(batch_size), str(threads), str(limit), str(passes)]
            if name == "ours":
                return _last_line([sys.executable, "-m", "torchrec_xd.benchmark.peers", *numbers, *ours], threads)
            return _last_line([*isolated(Path(__file__).with_name("peer_worker.py")), name, *numbers], threads)

        names = ("ours", *PACKAGES)
        runs = {name: partial(_speed, partial(measured, name, root / "speed", rows_per_table, 0)) for name in names}
        speed = alternate(runs, rounds)
        auc = {}
        if check_auc:
            rows = min(rows_per_table, AUC_TABLE)
            synthetic.write_flat(root / "auc", AUC_ROWS, rows)
            auc = {name: measured(name, root / "auc", rows, 1)["auc"] for name in names}
    best = max(PACKAGES, key=lambda name: speed[name].median)
    against = ratio(speed["ours"], speed[best])
    result = Result("peers", {**settings, "threads": threads or torch.get_num_threads(), "ratio": str(against)})
    result.rows = [
        {
            "what": name,
            "rows/s": value,
            "ours is faster by": ratio(speed["ours"], value),
            **{f"AUC {task}": f"{found:.4f}" for task, found in auc.get(name, {}).items()},
        }
        for name, value in speed.items()
    ]
    result.more = {
        "ours": speed["ours"].median,
        "peers": {name: speed[name].median for name in PACKAGES},
        "ratio": against.median,
        "ratio_spread": against,
        "auc": auc,
    }
    result.report(out)


def install() -> None:
    """Make `.venv-peers`, once, with the torch that we run on.

    Raises:
        UserError: pip failed.
    """
    stamp = ENVIRONMENT / ".installed"
    requirements = [f"torch=={version('torch')}", *PACKAGES.values()]
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not LOCK.is_file():
        raise UserError(f"peers are installed into {ENVIRONMENT} of the project: run the benchmark in its root folder")
    screen.print(f"installing {', '.join(PACKAGES.values())} into {ENVIRONMENT}, once")
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in (["--constraint", str(LOCK), "torch"], requirements):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(arguments)} could not be installed: {done.stderr[-1500:]}")
    stamp.write_text(wanted)


def _speed(measured: Callable[[], dict[str, Any]]) -> float:
    return float(measured()["rows_per_second"])


def isolated(script: Path) -> list[str]:
    """A command that runs a script in the peers' environment without its neighbours: ours has a module `profile`."""
    return [str(_python()), "-I", str(script)]


def _python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def _last_line(command: list[str], threads: int) -> dict[str, Any]:
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    environment.pop("GOMP_SPINCOUNT", None)  # ours sets it again; the others run as their users run them
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ours(
    folder: Path,
    rows_per_table: int,
    batch_size: int,
    threads: int,
    limit: float,
    passes: int,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
) -> None:
    """One measurement of ours; prints {"rows_per_second", "auc"}."""
    rest = {"loader": {"batch_size": batch_size}, "embeddings": {"dtype": dtype}, "trainer": {"precision": precision}}
    config = synthetic.config("mmoe", synthetic.flat_schema(folder, rows_per_table), **rest)
    with workbench(config, threads, batches=1) as bench:
        batches = bench.loader.batches(epochs=1_000_000)
        for batch in islice(batches, config.loader.prefetch):
            bench.step(batch)
        steps = passes * (pq.read_metadata(folder / "flat.parquet").num_rows // batch_size)
        began, rows = time.perf_counter(), 0
        for batch in islice(batches, steps) if steps else batches:
            bench.step(batch)
            rows += len(batch)
            if not steps and time.perf_counter() - began > limit:
                break
        speed = rows / (time.perf_counter() - began)
        batches.close()
        print(json.dumps({"rows_per_second": speed, "auc": _auc(bench) if steps else None}))


def _auc(bench: Workbench) -> dict[str, float | int | None]:
    report = SplitEvaluation(bench.config, "test", bench.processes).report(bench.training.model)
    return {task.label: report["eval"][task.name]["auc"] for task in bench.config.schema_in_use.tasks}


if __name__ == "__main__":
    typer.run(ours)
