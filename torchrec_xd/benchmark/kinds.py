"""`kinds`: what one feature more costs a step, by its kind: a vector, a bag, and the same bag with weights."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import BatchSize, Json, Repeats, Result, RowsPerTable, Threads, alternate, ratio
from torchrec_xd.benchmark.step import Dtype, ModelOption, Precision, known
from torchrec_xd.benchmark.workbench import synthetic_run, workbench
from torchrec_xd.config import RunConfig

PLAIN = "ids, a sequence"
IDS = 10
"""Of a bag."""


def kinds(
    model: ModelOption = "mmoe",
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 4096,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    vector: Annotated[int, typer.Option(min=1, help="Numbers of the vector.")] = 64,
    threads: Threads = 0,
    repeats: Repeats = 5,
    steps: Annotated[int, typer.Option(help="Steps of one measurement.")] = 20,
    out: Json = None,
) -> None:
    """Milliseconds of a step on batches in memory, with one feature more of some kind, in turns, each a process."""
    known(model)
    choices = (model, rows_per_table, batch_size, precision, dtype, threads, steps)
    runs = {name: partial(_apart, feature, *choices) for name, feature in further(vector, rows_per_table).items()}
    spent = alternate(runs, repeats)
    settings = {"model": model, "rows per table": rows_per_table, "batch": batch_size, "precision": precision}
    result = Result("kinds", {**settings, "tables": dtype, "threads": threads or torch.get_num_threads()})
    result.rows = [{"what": name, "ms": ms, "times plain": ratio(ms, spent[PLAIN])} for name, ms in spent.items()]
    result.report(out)


def further(vector: int, rows_per_table: int) -> dict[str, dict[str, Any] | None]:
    """What is measured: the feature that is added to `synthetic.domains_schema`."""
    bag = {"column": "more", "kind": "bag", "group": "shared", "rows": rows_per_table}
    return {
        PLAIN: None,
        f"+ a vector of {vector}": {"column": "more", "kind": "vector", "group": "shared", "length": vector},
        f"+ a bag of {IDS} ids": bag,
        f"+ a weighted bag of {IDS} ids": {**bag, "weights": "shares"},
    }


def add_feature(folder: Path, feature: dict[str, Any]) -> None:
    """Add the columns of a feature to all files."""
    for i, path in enumerate(sorted(folder.rglob("*.parquet"))):
        random, table = np.random.default_rng(i), pq.read_table(path)
        numbers = random.normal(size=(len(table), feature.get("length", IDS))).astype(np.float32)
        lists = pa.FixedSizeListArray.from_arrays(numbers.reshape(-1), numbers.shape[1])
        if feature["kind"] == "bag":
            table = table.append_column("shares", lists)
            lists = pa.FixedSizeListArray.from_arrays(random.integers(0, feature["rows"], numbers.size), IDS)
        pq.write_table(table.append_column(feature["column"], lists), path)


def _with(feature: dict[str, Any], config: RunConfig, model: str) -> RunConfig:
    add_feature(Path(config.data_schema.root), feature)
    content = config.model_dump(mode="json", by_alias=True)
    content["schema"]["features"].append(feature)
    kept = ("loader", "trainer", "embeddings", "optimizer", "init_from")
    return synthetic.config(model, content["schema"], **{key: content[key] for key in kept})


def _apart(*choices: Any) -> float:
    """`_milliseconds` in a process of its own: how one version uses memory shapes what the other would find there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_milliseconds, *choices).result()


def _milliseconds(
    feature: dict[str, Any] | None,
    model: str,
    rows_per_table: int,
    batch_size: int,
    precision: str,
    dtype: str,
    threads: int,
    steps: int,
) -> float:
    """Of one step."""
    with (
        synthetic_run(model, rows_per_table, batch_size, precision, dtype) as config,
        workbench(config if feature is None else _with(feature, config, model), threads) as bench,
    ):
        return 1000 * bench.rows / bench.speed(steps)
