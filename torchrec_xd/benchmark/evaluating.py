"""`metrics`: what exact metrics of many rows cost, in one process and in several; each point has its own processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.benchmark.measure import BatchSize, Json, Result
from torchrec_xd.distributed.memory import peak_memory
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

TASK = "click@feed"


def metrics(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Rows of all processes; may be repeated.")] = None,
    ranks: Annotated[list[int] | None, typer.Option(min=1, help="Processes; may be repeated.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Whose rows they are; some have many, most have few.")] = 2_000_000,
    weights: Annotated[bool, typer.Option(help="Rows have weights: metrics come with and without them.")] = False,
    batch_size: BatchSize = 4096,
    out: Json = None,
) -> None:
    """AUC, GAUC, log loss, NE and calibration of made-up rows, exact, as an evaluation yields them; time and memory.

    Seconds are those of the metrics alone, on all cores; the peak is the whole process, with the rows that it holds and
    all imports.
    """
    result = Result("metrics", {"users": users, "weights": "drawn" if weights else "1", "batch": batch_size})
    for count in rows or [1_000_000, 10_000_000]:
        for size in ranks or [1, 2]:
            found = _measure(size, f"{count}", f"{users}", f"{weights:d}", f"{batch_size}")
            of_ranks = found["ranks"]
            result.rows.append(
                {
                    "what": f"{count:,} rows, {size} {'process' if size == 1 else 'processes'}",
                    "seconds": max(each["seconds"] for each in of_ranks),
                    "CPU seconds": sum(each["cpu_seconds"] for each in of_ranks),
                    "rows held GB": sum(each["held_bytes"] for each in of_ranks) / 1e9,
                    "peak GB of a process": max(each["peak_bytes"] for each in of_ranks) / 1e9,
                    "peak GB of all": sum(each["peak_bytes"] for each in of_ranks) / 1e9,
                    "AUC": found["eval"]["auc"],
                    "GAUC": found["eval"]["gauc"],
                    "by rank": of_ranks,
                    "eval": found["eval"],
                }
            )
    details = [{key: row.pop(key) for key in ("by rank", "eval")} for row in result.rows]
    result.more = {"details": details}
    result.report(out)


def _measure(ranks: int, *arguments: str) -> dict[str, Any]:
    """What `main` finds in so many processes.

    Raises:
        UserError: one of them failed; with the end of what it said.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, *launcher, "-m", "torchrec_xd.benchmark.evaluating", str(found), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        content: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return content


def main(path: str, *arguments: str) -> None:
    """Measure one point on the processes that there are, and write it to a file."""
    rows, users, weights, batch_size = map(int, arguments)
    with process_group() as processes:
        content = {"name": "rows", "user": "user", "domains": {"feed": {"role": "target", "train": "unused"}}}
        feature = {"column": "item", "kind": "id", "group": "shared", "rows": 2}
        tasks = [{"label": "click", "domain": "feed"}]
        weight = {"weight": "weight"} if weights else {}
        schema = validate(Schema, {**content, **weight, "tasks": tasks, "features": [feature]}, "benchmark")
        evaluation, imported = Evaluation(schema, MetricSettings()), psutil.Process().memory_info().rss
        shares = [rows // processes.size + (rank < rows % processes.size) for rank in range(processes.size)]
        random = np.random.default_rng([0, processes.rank])
        for batch, score_BT in made_up(random, shares[processes.rank], users, bool(weights), batch_size):
            evaluation.update(batch, score_BT)
        held = psutil.Process().memory_info().rss - imported
        processes.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        report = evaluation.compute(processes.group)
        measured = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "held_bytes": held,
            "peak_bytes": peak_memory(torch.device("cpu")),
        }
        by_rank = processes.all_gather_object(measured)
        if processes.is_main_process:
            Path(path).write_text(json.dumps({"ranks": by_rank, "eval": report["eval"][TASK]}), encoding="utf-8")


def made_up(
    random: np.random.Generator, rows: int, users: int, weights: bool, batch_size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches and their scores as evaluation reads them: users in any order, clicks one in eight, some scores tied.

    Args:
        random: where rows come from.
        rows: in all.
        users: the higher a user's number, the fewer rows.
        weights: whether rows have weights, inverse sampling rates; else all weigh 1.
        batch_size: rows of a batch.
    """
    no_ids = KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int32))
    for first in range(0, rows, batch_size):
        count = min(batch_size, rows - first)
        score_B = 1 / (1 + np.exp(2.2 - random.standard_normal(count, dtype=np.float32)))
        label_B = (random.random(count, dtype=np.float32) < score_B).astype(np.float32)
        user_B = (random.random(count) ** 2 * users).astype(np.int64)
        weight_B = 1 / random.integers(1, 50, count).astype(np.float32) if weights else np.ones(count, np.float32)
        batch = Batch(
            bags=no_ids,
            weighted_bags=no_ids,
            sequences=no_ids,
            dense_BN=torch.empty(count, 0),
            vector_BV=torch.empty(count, 0),
            label_BT=torch.from_numpy(label_B[:, None]),
            weight_B=torch.from_numpy(weight_B),
            user_B=torch.from_numpy(user_B),
            extra_BK=torch.empty(count, 0, dtype=torch.int64),
            offsets=(0, count),
            position=LoaderState(0, 1),
        )
        yield batch, torch.from_numpy(score_B[:, None])


if __name__ == "__main__":
    main(*sys.argv[1:])
