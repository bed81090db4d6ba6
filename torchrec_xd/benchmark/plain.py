"""`plain`: MKT's first stage and EXIT against the same models in straightforward PyTorch.

Straightforward means: one nn.Embedding per table in fp32, every net on every row, rows of other domains masked out of
the loss, Adam on everything. The nets are ours, weight by weight, so the two can be held against each other: equal loss
on equal weights is a test. What is prepared outside of the timing (dense id tensors, masks) helps the plain version.

`compiled` is the same code with what PyTorch offers for a line each: bf16 autocast, `torch.compile` of everything from
lookup to loss (also the backward pass), and the fused Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from typing import Annotated, Any, Literal, cast

import torch
import typer
from torch import Tensor, nn

from torchrec_xd.batch import Batch
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
from torchrec_xd.benchmark.step import Dtype, Precision
from torchrec_xd.benchmark.workbench import WARM_UP, synthetic_run, workbench
from torchrec_xd.embeddings import FLAT_GROUPS, Lookups, SequenceLookup
from torchrec_xd.losses import bce_sum
from torchrec_xd.models.mkt import MultiEntityLoss, MultiEntityModel
from torchrec_xd.models.model import Model
from torchrec_xd.modules.extractors import TaskTowers
from torchrec_xd.modules.ple import SHARED, ProgressiveLayeredExtraction
from torchrec_xd.schema import Schema
from torchrec_xd.training.building import build


@dataclass(frozen=True)
class PlainBatch:
    """A batch as plain models read it: every column for every row."""

    ids: dict[str, Tensor]
    """Id columns `[B]`, 0 where the row's domain lacks the column; sequences `[B, L]`, padded with 0."""
    lengths: dict[str, Tensor]
    """Of the sequences, `[B]`."""
    masks: dict[str, Tensor]
    """Domain to 1 where the row is its own, `[B]`."""
    whole: Batch
    """For labels and weights."""


def plain_batch(batch: Batch, schema: Schema) -> PlainBatch:
    """The same rows, every column for every row."""
    jagged = {**batch.bags.to_dict(), **batch.sequences.to_dict()}
    ids, lengths = {}, {}
    for feature in schema.features:
        padded = jagged[feature.column].to_padded_dense(feature.length or 1).long()
        ids[feature.column] = padded if feature.kind == "sequence" else padded.squeeze(1)
        if feature.kind == "sequence":
            lengths[feature.column] = jagged[feature.column].lengths()
    masks = {}
    for i, domain in enumerate(schema.domains):
        masks[domain] = torch.zeros(len(batch))
        masks[domain][batch.rows(i)] = 1.0
    return PlainBatch(ids, lengths, masks, batch)


class PlainEmbeddings(nn.Module):
    """One nn.Embedding per table; all features of all rows, also those that a row's domain lacks."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({t.name: nn.Embedding(t.rows, t.dim) for t in schema.tables()})
        # Lists of names, as torch.compile does not look into a schema.
        self.table_of = {f.column: f.table_name for f in schema.features}
        self.groups = {group: [f.column for f in schema.features if f.group == group] for group in FLAT_GROUPS}
        specific = {domain: schema.features_of(domain, "specific") for domain in schema.domains}
        self.specific = {domain: [f.column for f in features] for domain, features in specific.items() if features}
        self.queries = {
            f.column: next(o.column for o in t.features if o.kind == "id")
            for t in schema.tables()
            for f in t.features
            if f.kind == "sequence"
        }
        self.domains = tuple(schema.domains)
        for table in self.tables.values():
            nn.init.normal_(cast(nn.Embedding, table).weight, std=0.01)

    def forward(self, batch: PlainBatch) -> Lookups:
        """Lookups in which every domain has all rows."""
        found = {column: self.tables[table](batch.ids[column]) for column, table in self.table_of.items()}
        mask_B = next(iter(batch.masks.values()))
        empty = mask_B.new_zeros(len(mask_B), 0)
        groups = {
            g: torch.cat([empty, *[found[column] for column in columns]], 1) for g, columns in self.groups.items()
        }
        specific = {
            domain: torch.stack([found[column] for column in columns], dim=1)
            for domain, columns in self.specific.items()
        }
        sequences = {
            column: SequenceLookup(
                self._within(found[column], batch.lengths[column]), batch.lengths[column], found[query]
            )
            for column, query in self.queries.items()
        }
        return Lookups(groups, specific, sequences, dict.fromkeys(self.domains, slice(0, len(mask_B))))

    @staticmethod
    def _within(keys_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Keys beyond a sequence's end are zero."""
        inside_BL = torch.arange(keys_BLD.shape[1]) < length_B.unsqueeze(1)
        return keys_BLD * inside_BL.unsqueeze(2)


def plain_mkt(net: MultiEntityModel, gamma: float, lookups: Lookups, batch: PlainBatch) -> Tensor:
    """The loss of MKT's first stage with masks: every domain's nets see all rows."""
    vectors = net.common.vectors(lookups)
    rows_BV = torch.cat(list(vectors.values()), dim=1)
    aligned = {domain: net.common.hfa[domain](spec) for domain, spec in lookups.specific.items()}
    mixed = torch.stack([aligned[d] * batch.masks[d].unsqueeze(1) for d in aligned]).sum(0)
    x = torch.cat([rows_BV, mixed], dim=1)
    level = cast(ProgressiveLayeredExtraction, net.common.get_submodule("ple")).last
    towers = cast(TaskTowers, net.towers)
    shared = level.run(SHARED, x)
    rows, losses, cosines = len(batch.whole), [], []
    for i, task in enumerate(net.schema.tasks):
        domain, mask_B = task.domain, batch.masks[task.domain]
        common = level.gates[domain](x, [*level.run(domain, x), *shared])
        independent = net.independent[domain](torch.cat([rows_BV, lookups.specific[domain].flatten(1)], dim=1))
        logit = towers[task.name](torch.cat([common, independent], dim=1)).squeeze(1)
        label_B = torch.nan_to_num(batch.whole.label_BT[:, i])
        losses.append(bce_sum(logit, label_B, mask_B) / rows)
        cosine_B = nn.functional.cosine_similarity(common, independent, dim=1)
        cosines.append((cosine_B * mask_B).sum() / mask_B.sum().clamp(min=1))
    return torch.stack(losses).sum() + gamma * torch.stack(cosines).sum()


def plain_loss(model: Model, lookups: Lookups, batch: PlainBatch) -> Tensor:
    """The loss of either model; EXIT has one domain, so there is nothing to mask."""
    if isinstance(model.loss, MultiEntityLoss):
        return plain_mkt(cast(MultiEntityModel, model.net), model.loss.gamma, lookups, batch)
    parts = model.loss(model.net(lookups), batch.whole).parts
    return torch.stack(list(parts.values())).sum()


def plain(
    model: Annotated[Literal["mkt_pretrain", "exit"], typer.Option(help="Which model.")] = "mkt_pretrain",
    rows_per_table: RowsPerTable = 100_000,
    batch_size: BatchSize = 4096,
    precision: Precision = "auto",
    dtype: Dtype = "fp16",
    threads: Threads = 0,
    repeats: Repeats = 7,
    steps: Annotated[int, typer.Option(help="Steps of one measurement.")] = 20,
    compiled: Annotated[
        bool, typer.Option(help="Also in bf16 and through torch.compile (needs a C++ compiler).")
    ] = False,
    out: Json = None,
) -> None:
    """Rows per second on batches in memory: ours and the straightforward version in turns, each a process."""
    choices = (model, rows_per_table, batch_size, precision, dtype, threads, steps)
    versions = ["ours", "straightforward", *(["compiled"] if compiled else [])]
    speed = alternate({version: partial(_apart, version, *choices) for version in versions}, repeats)
    settings = {"model": model, "rows per table": rows_per_table, "batch": batch_size, "precision": precision}
    result = Result("plain", {**settings, "tables": dtype, "threads": threads or torch.get_num_threads()})
    result.rows = [{"what": name, "rows/s": value} for name, value in speed.items()]
    result.more = {"ratio": ratio(speed["ours"], speed["straightforward"])}
    if compiled:
        result.more["ratio_compiled"] = ratio(speed["ours"], speed["compiled"])
    result.settings |= {name: str(value) for name, value in result.more.items()}
    result.report(out)


def _apart(*choices: Any) -> float:
    """`_speed` in a process of its own: how one version uses memory shapes what the other would find there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_speed, *choices).result()


def _speed(
    version: str, model: str, rows_per_table: int, batch_size: int, precision: str, dtype: str, threads: int, steps: int
) -> float:
    """Rows per second of one version."""
    with (
        synthetic_run(model, rows_per_table, batch_size, precision, dtype) as config,
        workbench(config, threads) as bench,
    ):
        if version == "ours":
            return bench.speed(steps)
        schema = config.schema_in_use
        batches = cycle([plain_batch(batch, schema) for batch in bench.batches])
        step = plain_step(build(config), schema, compiled=version == "compiled")
        for batch in islice(batches, WARM_UP):
            step(batch)
        return steps * bench.rows / seconds(lambda: [step(batch) for batch in islice(batches, steps)])


def plain_step(model: Model, schema: Schema, *, compiled: bool) -> Callable[[PlainBatch], Tensor]:
    """A function that takes one step on a batch and returns its loss."""
    tables = PlainEmbeddings(schema)
    optimizer = torch.optim.Adam([*tables.parameters(), *model.net.parameters()], fused=compiled or None)

    def loss(batch: PlainBatch) -> Tensor:
        return plain_loss(model, tables(batch), batch)

    loss_of = torch.compile(loss) if compiled else loss

    def step(batch: PlainBatch) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
            found = loss_of(batch)
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return found.detach()

    return step
