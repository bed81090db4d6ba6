"""The evaluation of a model on one split of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from torchrec_xd.batch import Batch
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic
from torchrec_xd.distributed.process_group import Processes
from torchrec_xd.evaluation.metrics import Evaluation, Report
from torchrec_xd.feature import Feature
from torchrec_xd.models import find_model
from torchrec_xd.outputs import score_matrix
from torchrec_xd.schema import Schema, Split
from torchrec_xd.training.trainer import predict


class SplitEvaluation:
    """A split to be evaluated; its files are checked when this is made.

    Args:
        config: of the run.
        split: what is evaluated.
        processes: that share the rows.
        diagnostics: are fed the same batches; in one process only, as they see the rows of their own rank.
    """

    def __init__(
        self, config: RunConfig, split: Split, processes: Processes, diagnostics: Sequence[Diagnostic] = ()
    ) -> None:
        self.schema, self.processes, self.diagnostics = config.schema_in_use, processes, diagnostics
        self.auxiliary = find_model(config.model.name).auxiliary_scores(config.model)
        self.settings = config.metrics
        extra = dict.fromkeys(Evaluation(self.schema, self.settings, self.auxiliary).extra)
        extra |= dict.fromkeys(column for each in diagnostics for column in each.integer_columns())
        self.extra = tuple(extra)
        shard = ShardSpec(processes.rank, processes.size, config.seed, shuffle=False)
        self.loader = Loader(self.schema, config.loader, split, shard, extra=self.extra)

    def report(self, model: nn.Module) -> Report:
        """Exact metrics of the whole split (a collective)."""
        evaluation = Evaluation(self.schema, self.settings, self.auxiliary)
        own = [self.extra.index(column) for column in evaluation.extra]
        for batch, output in predict(model, self.loader, self.processes):
            for each in self.diagnostics:
                each.update(batch, output, columns_of(batch, self.extra))
            read = batch if own == list(range(len(self.extra))) else replace(batch, extra_BK=batch.extra_BK[:, own])
            evaluation.update(read, score_matrix(self.schema, batch, output, self.auxiliary))
        return evaluation.compute(self.processes.group)

    def monitored(self, model: nn.Module, config: RunConfig) -> float | None:
        """Mean of the monitored metric over the monitored tasks."""
        report = self.report(model)["eval"]
        values = [report[name][config.monitor] for name in config.monitored_tasks]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


def columns_of(batch: Batch, integers: Sequence[str], numbers: Sequence[Feature] = ()) -> Columns:
    """The columns that diagnostics read: `integers` are the batch's extra ones, `numbers` its last dense ones."""
    columns: dict[str, torch.Tensor] = {column: batch.extra_BK[:, i] for i, column in enumerate(integers)}
    first = batch.dense_BN.shape[1] - len(numbers)
    return {**columns, **{feature.column: batch.dense_BN[:, first + i] for i, feature in enumerate(numbers)}}


def has_rows(schema: Schema, split: Split) -> bool:
    """Whether some domain names files for a split."""
    return any(domain.paths(split) for domain in schema.domains.values())
