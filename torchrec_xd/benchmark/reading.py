"""`reader`: Parquet to batches, against a plain scan; `train`: end to end, against `step`."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.dataset as ds
import torch
import typer

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import (
    BatchSize,
    Json,
    Repeats,
    Result,
    RowsPerTable,
    Threads,
    alternate,
    ratio,
    seconds,
)
from torchrec_xd.benchmark.step import Dtype, ModelOption, Precision, known
from torchrec_xd.benchmark.workbench import synthetic_run, workbench
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.memory import keep_freed_memory
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate


def reader(
    rows: Annotated[int, typer.Option(help="Rows of the data set, half of them each domain's.")] = 4_000_000,
    batch_size: BatchSize = 4096,
    threads: Annotated[int, typer.Option(min=1, help="Arrow's CPU threads, for both.")] = 2,
    repeats: Repeats = 5,
    out: Json = None,
) -> None:
    """Rows per second from Parquet to batches, shuffled and in order, against a plain scan of the same columns."""
    pa.set_cpu_count(threads)
    keep_freed_memory()  # as training does
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        root = Path(folder)
        synthetic.write_domains(root, rows, rows_per_table=1_000_000)
        schema = validate(Schema, synthetic.domains_schema(root, 1_000_000), "benchmark")
        runs = {
            "plain scan": partial(_scan, schema, rows),
            "batches in order": partial(_read, schema, batch_size, rows, shuffle=False),
            "batches, shuffled": partial(_read, schema, batch_size, rows, shuffle=True),
        }
        for warm_up in runs.values():
            warm_up()
        speed = alternate(runs, repeats)
    result = Result("reader", {"rows": rows, "batch": batch_size, "threads": threads})
    scan = speed["plain scan"]
    result.rows = [{"what": name, "rows/s": value, "of the scan": ratio(value, scan)} for name, value in speed.items()]
    result.report(out)


def _scan(schema: Schema, rows: int) -> float:
    began = time.perf_counter()
    for name, domain in schema.domains.items():
        labels = [task.label for task in schema.tasks if task.domain == name]
        columns = list(dict.fromkeys([f.column for f in schema.features_of(name)] + labels))
        for _ in ds.dataset(Path(schema.root) / domain.paths("train")[0]).to_batches(columns=columns):
            pass
    return rows / (time.perf_counter() - began)


def _read(schema: Schema, batch_size: int, rows: int, *, shuffle: bool) -> float:
    began = time.perf_counter()
    loader = Loader(schema, LoaderSettings(batch_size=batch_size), "train", ShardSpec(shuffle=shuffle))
    for _ in loader.batches():
        pass
    return rows / (time.perf_counter() - began)


def train(
    model: ModelOption = "mmoe",
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 4096,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    threads: Threads = 0,
    repeats: Repeats = 7,
    steps: Annotated[int, typer.Option(help="Steps of one measurement.")] = 30,
    out: Json = None,
) -> None:
    """Rows per second end to end from Parquet, in turns with steps on batches in memory: what reading costs."""
    known(model)
    with (
        synthetic_run(model, rows_per_table, batch_size, precision, dtype) as config,
        workbench(config, threads) as bench,
    ):
        batches = bench.loader.batches(epochs=1_000_000)

        def from_parquet() -> float:
            for _ in range(
                config.loader.prefetch + 1
            ):  # batches that were prefetched before the clock started do not count
                next(batches)
            rows: list[int] = []

            def steps_from_parquet() -> None:
                for batch in islice(batches, steps):
                    bench.step(batch)
                    rows.append(len(batch))

            took = seconds(steps_from_parquet)
            return sum(rows) / took

        speed = alternate({"step": lambda: bench.speed(steps), "train": from_parquet}, repeats)
    settings = {"model": model, "rows per table": rows_per_table, "batch": batch_size, "precision": precision}
    result = Result("train", {**settings, "tables": dtype, "threads": torch.get_num_threads()})
    result.rows = [{"what": name, "rows/s": value} for name, value in speed.items()]
    result.more = {"train_of_step": ratio(speed["train"], speed["step"])}
    result.settings["train / step"] = str(result.more["train_of_step"])
    result.report(out)
