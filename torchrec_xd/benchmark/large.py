"""`large`: a whole run, checkpoints included, on more table rows than a laptop's library would hold."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import BatchSize, Json, Result
from torchrec_xd.benchmark.step import Dtype, Optimizer, Precision
from torchrec_xd.training.train_run import train

GIB = 2**30


def large(
    rows: Annotated[int, typer.Option(help="Table rows, over all tables.")] = 100_000_000,
    batch_size: BatchSize = 4096,
    steps: Annotated[int, typer.Option(min=2, help="Steps of training; a checkpoint is written halfway.")] = 100,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    optimizer: Optimizer = "rowwise_adagrad",
    out: Json = None,
) -> None:
    """MMoE on 30 tables: train, write two checkpoints, read one back, evaluate; step time and peak memory."""
    rows_per_table = rows // synthetic.COLUMNS
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=Path.cwd()) as folder:
        root = Path(folder)
        synthetic.write_flat(root, steps * batch_size, rows_per_table)
        config = synthetic.config(
            "mmoe",
            synthetic.flat_schema(root, rows_per_table),
            loader={"batch_size": batch_size},
            embeddings={"dtype": dtype},
            optimizer={"tables": {"name": optimizer}},
            trainer={"precision": precision, "log_every": 10},
            checkpoint={"every_steps": steps // 2},
        )
        began = time.perf_counter()
        metrics = train(config, root / "run")
        took = time.perf_counter() - began
        written = sum(file.stat().st_size for file in (root / "run" / "checkpoints").rglob("*") if file.is_file())
        kept = len(list((root / "run" / "checkpoints").glob("step_*")))
    [rank] = metrics["train"]["ranks"]
    result = Result("large", {"table rows": rows, "dim": synthetic.DIM, "tables": dtype, "optimizer": optimizer})
    result.rows = [
        {"what": "weights and optimizer state of the tables, GiB", "found": rank["table_bytes"] / GIB},
        {"what": "peak memory of the process, GiB", "found": rank["peak_memory_bytes"] / GIB},
        {"what": "a checkpoint on disk, GiB", "found": written / GIB / max(kept, 1)},
        {"what": "step, ms (median)", "found": rank["step_ms"]},
        {"what": "rows per second of the whole training, checkpoints included", "found": batch_size * steps / took},
        {"what": "AUC of click", "found": metrics["eval"]["click@flat"]["auc"]},
    ]
    result.more = {"train": metrics["train"], "seconds": took}
    result.report(out)
