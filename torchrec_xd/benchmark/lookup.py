"""`lookup`: sharded, fused tables against what torch has: one nn.EmbeddingBag per table and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.batch import Batch, LoaderState
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
from torchrec_xd.benchmark.step import Dtype
from torchrec_xd.distributed.optimizers import OptimizerSettings, fuse_optimizers
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.distributed.sharding import shard
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings, Lookups
from torchrec_xd.models.model import Model
from torchrec_xd.outputs import Losses, Predictions
from torchrec_xd.planner import ShardingSettings, plan_run
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.table_types import TableOptimizer
from torchrec_xd.training.building import run_cluster

PLAIN_OPTIMIZERS: dict[str, tuple[bool, Callable[[Any], torch.optim.Optimizer]]] = {
    "sparse SGD": (True, lambda parameters: torch.optim.SGD(parameters, 0.01)),
    "sparse Adagrad": (True, lambda parameters: torch.optim.Adagrad(parameters, 0.01)),
    "SparseAdam": (True, lambda parameters: torch.optim.SparseAdam(parameters, 0.01)),
    "dense Adam": (False, lambda parameters: torch.optim.Adam(parameters, 0.01)),
}
"""Whether gradients are sparse, and the optimizer."""
DENSE_BYTES = 2**31
"""Dense Adam keeps four times its tables; above this many bytes of tables it is left out."""


class Mean(nn.Module):
    """The mean of all vectors: a loss whose own cost is nothing compared with the lookups'."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))  # a model without dense weights has nothing for its optimizer

    def forward(self, lookups: Lookups) -> Predictions:
        """No scores."""
        return Predictions({}, {}, {"mean": self.scale * lookups.groups["shared"].mean()})


def _mean_loss(predictions: Predictions, batch: Batch) -> Losses:
    return Losses({"mean": predictions.vectors["mean"]})


class PlainBags(nn.Module):
    """One nn.EmbeddingBag per table."""

    def __init__(self, tables: int, rows: int, dim: int, *, sparse: bool) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="sum", sparse=sparse) for _ in range(tables))

    def forward(self, features: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Ids and offsets per table to the mean of all vectors."""
        found = [bag(ids, offsets) for bag, (ids, offsets) in zip(self.bags, features, strict=True)]
        return torch.cat(found, dim=1).mean()


def lookup(
    tables: Annotated[int, typer.Option(min=1, help="Number of tables.")] = 30,
    rows_per_table: RowsPerTable = 100_000,
    dim: Annotated[int, typer.Option(help="Width; a multiple of 4.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Ids of a bag, pooled by sum.")] = 1,
    batch_size: BatchSize = 4096,
    dtype: Dtype = "fp16",
    optimizer: Annotated[TableOptimizer, typer.Option(help="Of our tables.")] = "rowwise_adagrad",
    threads: Threads = 0,
    repeats: Repeats = 7,
    out: Json = None,
) -> None:
    """Milliseconds of looking up and updating all tables once."""
    if threads:
        torch.set_num_threads(threads)
    with process_group() as processes:
        batch = _batch(tables, rows_per_table, length, batch_size)
        runs = {"ours": _ours(batch, _schema(tables, rows_per_table, dim), dtype, optimizer, processes)}
        for name, (sparse, make) in PLAIN_OPTIMIZERS.items():
            if sparse or tables * rows_per_table * dim * 4 <= DENSE_BYTES:
                bags = PlainBags(tables, rows_per_table, dim, sparse=sparse).to(processes.device)
                runs[name] = _plain(bags, make, batch.to(processes.device))
        for run in runs.values():
            run()
            run()
        spent = alternate(runs, repeats)
    result = Result(
        "lookup",
        {
            "tables": tables,
            "rows per table": rows_per_table,
            "dim": dim,
            "ids per bag": length,
            "batch": batch_size,
            "ours": f"{dtype}, {optimizer}",
            "threads": torch.get_num_threads(),
        },
    )
    result.rows = [{"what": name, "ms": ms, "times ours": ratio(ms, spent["ours"])} for name, ms in spent.items()]
    result.report(out)


def _schema(tables: int, rows: int, dim: int) -> Schema:
    content = {
        "name": "lookup",
        "user": "user",
        "dim": dim,
        "domains": {"only": {"role": "target", "train": "none.parquet"}},
        "tasks": [{"label": "none", "domain": "only"}],
        "features": [{"column": f"f_{i}", "kind": "bag", "group": "shared", "rows": rows} for i in range(tables)],
    }
    return validate(Schema, content, "benchmark")


def _batch(tables: int, rows: int, length: int, batch_size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (tables * batch_size * length,), generator=generator)
    lengths = torch.full((tables * batch_size,), length)
    keys = [f"f_{i}" for i in range(tables)]
    empty = torch.zeros(batch_size, 0)
    bags = KeyedJaggedTensor(keys, ids, lengths=lengths, stride=batch_size)
    none = KeyedJaggedTensor([], ids[:0], lengths=lengths[:0], stride=batch_size)
    users = torch.zeros(batch_size, dtype=torch.int64)
    return Batch(
        bags,
        none,
        none,
        empty,
        empty,
        empty,
        torch.ones(batch_size),
        users,
        empty.long(),
        (0, batch_size),
        LoaderState(0, 0),
    )


def _ours(batch: Batch, schema: Schema, dtype: Dtype, optimizer: str, processes: Processes) -> Callable[[], float]:
    built = Model(Embeddings(schema, EmbeddingSettings(dtype=dtype), seed=0), Mean(), _mean_loss)
    settings = validate(OptimizerSettings, {"tables": {"name": optimizer}}, "--optimizer")
    fuse_optimizers(built, settings.tables)
    sharding, cluster = ShardingSettings(), run_cluster(processes)
    plan = plan_run(built, sharders(sharding.communication), cluster, sharding, len(batch), {}).sharding_plan
    model, optimizers = shard(built, plan, settings, processes, sharding.communication)
    batch = batch.to(processes.device)

    def step() -> None:
        optimizers.set_lr(0, 1)
        optimizers.zero_grad()
        model(batch).total_loss().backward()
        optimizers.step()

    return lambda: 1000 * seconds(step)


def _plain(bags: PlainBags, make: Callable[[Any], torch.optim.Optimizer], batch: Batch) -> Callable[[], float]:
    optimizer = make(bags.parameters())
    features = [(jagged.values(), jagged.offsets()[:-1]) for jagged in batch.bags.to_dict().values()]

    def step() -> None:
        optimizer.zero_grad()
        bags(features).backward()
        optimizer.step()

    return lambda: 1000 * seconds(step)
