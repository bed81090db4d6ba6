"""What tools plan: the tables of a run config or a schema, as a run would hold them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from tools.workload import Workload
from torchrec_xd.config import load_config
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.distributed.optimizers import TableOptimizer, announce_optimizer
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import PlannerSettings
from torchrec_xd.planner.inputs.tables import WeightType, schema_tables
from torchrec_xd.schema import Schema, load_schema
from torchrec_xd.settings import load_yaml
from torchrec_xd.training.building import build

ROW_GROUPS_MEASURED = 8
"""Row groups of each domain that `measured_pooling` reads."""


def config_workload(
    path: Path, weights: WeightType | None, optimizer: TableOptimizer | None, *, measure_pooling: bool
) -> Workload:
    """The tables of a run config as its run would hold them, or those of a schema.

    Raises:
        UserError: the file is neither, or bf16 is asked for, which runs do not store.
    """
    if weights == "bf16":
        raise UserError("a run stores its tables as fp32 or fp16, not bf16; plan a table list for bf16")
    if "features" in load_yaml(path):
        schema = load_schema(path)
        embeddings = Embeddings(schema, EmbeddingSettings(dtype=weights or "fp32"), seed=0)
        means = measured_pooling(schema) if measure_pooling else {}
        settings = PlannerSettings(pooling=schema_tables(schema, means).pooling())
        chosen = optimizer or "rowwise_adagrad"
        announce_optimizer(embeddings, chosen)
        # The path under which a trained model holds its tables.
        return Workload(nn.ModuleDict({"embeddings": embeddings}), chosen, sharders(), settings)
    config = load_config(path)
    if weights is not None:
        config = config.model_copy(update={"embeddings": config.embeddings.model_copy(update={"dtype": weights})})
    schema = config.schema_in_use
    task = build(config)
    chosen = optimizer or config.optimizer.tables.name
    announce_optimizer(task.embeddings, chosen)
    if task.teacher is not None:
        # Frozen tables keep no optimizer state.
        announce_optimizer(task.teacher, "sgd")
    means = measured_pooling(schema) if measure_pooling else {}
    settings = PlannerSettings(
        batch_size=config.loader.batch_size,
        pooling=schema_tables(schema, means).pooling(),
        constraints=config.sharding.wishes,
    )
    return Workload(task, chosen, sharders(config.sharding.communication), settings)


def measured_pooling(schema: Schema) -> dict[str, float]:
    """Mean ids per sample of every feature with a table, over the first row groups of each domain's training files.

    A feature counts nothing in rows of domains without it, as in a batch of mixed domains.
    """
    columns = {feature.column: feature for table in schema.tables() for feature in table.features}
    ids = dict.fromkeys(columns, 0)
    rows = 0
    for name, domain in schema.domains.items():
        files = ParquetFiles(domain.paths("train"), schema.root, lambda file, found: None)
        own = [f.column for f in schema.features_of(name) if f.column in columns]
        read = files.reader(own)
        for row_group in files.row_groups[:ROW_GROUPS_MEASURED]:
            table = read(row_group)
            rows += table.num_rows
            for column in table.column_names:
                ids[column] += _ids(table[column], columns[column].length)
    if not rows:
        raise UserError(f"schema '{schema.name}': the training files hold no rows to measure pooling on")
    # A feature that never occurs still costs its lookup.
    return {column: max(count / rows, 1e-6) for column, count in ids.items()}


def _ids(column: pa.ChunkedArray, length: int | None) -> int:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return len(column) - int(column.null_count)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    if length is not None:
        lengths = pc.min_element_wise(lengths, length)
    return int(pc.sum(lengths).as_py() or 0)
