"""What tools plan: the module of a run config, a schema or a table list, with its planner settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from torchrec_xd.config import RunConfig, load_config, load_run
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings
from torchrec_xd.models import MODELS
from torchrec_xd.planner.constraints import Constraint
from torchrec_xd.planner.planning import PlannerSettings
from torchrec_xd.planner.tables import (
    OptimizerName,
    TableModule,
    WeightType,
    load_tables,
    schema_tables,
    set_optimizer,
)
from torchrec_xd.schema import Schema, load_schema
from torchrec_xd.settings import UserError, load_yaml, validate

ROW_GROUPS_MEASURED = 8
"""Row groups of each domain that `measured_pooling` reads."""


@dataclass(frozen=True)
class Workload:
    """A module on the meta device and how it is to be planned."""

    module: nn.Module
    settings: PlannerSettings


def list_workload(path: Path, weights: WeightType, optimizer: OptimizerName) -> Workload:
    """The tables of a list.

    Raises:
        UserError: file and line of each fault.
    """
    listed = load_tables(path)
    module = TableModule(listed, weights)
    set_optimizer(module, optimizer)
    return Workload(module, PlannerSettings(pooling=listed.pooling(), constraints=listed.constraints))


def config_workload(
    path: Path, weights: WeightType | None, optimizer: OptimizerName | None, *, measure_pooling: bool
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
        set_optimizer(embeddings, optimizer or "rowwise_adagrad")
        means = measured_pooling(schema) if measure_pooling else {}
        # The path under which a trained model holds its tables.
        return Workload(
            nn.ModuleDict({"embeddings": embeddings}), PlannerSettings(pooling=schema_tables(schema, means).pooling())
        )
    config = load_config(path)
    schema = config.schema_in_use
    task = MODELS[config.model.name].build(
        schema,
        config.model,
        config.embeddings.model_copy(update={"dtype": weights or config.embeddings.dtype}),
        config.seed,
        *_source(config),
    )
    set_optimizer(task.embeddings, optimizer or config.optimizer.tables.name)
    if task.teacher is not None:
        # Frozen tables keep no optimizer state.
        set_optimizer(task.teacher, "sgd")
    means = measured_pooling(schema) if measure_pooling else {}
    settings = PlannerSettings(
        batch_size=config.loader.batch_size,
        pooling=schema_tables(schema, means).pooling(),
        constraints=(Constraint(tables=("*",), sharding_types=config.sharding.types, kernels=("fused",)),),
    )
    return Workload(task, settings)


def _source(config: RunConfig) -> tuple[Any, ...]:
    if config.init_from is None:
        return ()
    source = load_run(config.init_from)
    return ((source.schema_in_use, source.model, source.embeddings),)


def with_wishes(
    settings: PlannerSettings,
    pooling: Path | None,
    constraints: Path | None,
    *,
    batch_size: int | None,
    effort: int | None,
) -> PlannerSettings:
    """Settings with what files and flags add to them.

    Raises:
        UserError: a file's fault, or a value out of range.
    """
    content = settings.model_dump()
    if batch_size is not None:
        content["batch_size"] = batch_size
    if effort is not None:
        content["effort"] = effort
    if pooling is not None:
        given = load_yaml(pooling)
        for feature in given:
            if feature not in content["pooling"]:
                raise UserError(f"{pooling}: no feature '{feature}'; features: {', '.join(content['pooling'])}")
        content["pooling"] = {**content["pooling"], **given}
    if constraints is not None:
        wishes = load_yaml(constraints)
        if set(wishes) != {"constraints"}:
            raise UserError(f"{constraints}: expected the one key 'constraints', got: {', '.join(wishes)}")
        content["constraints"] = [*content["constraints"], *wishes["constraints"]]
    return validate(PlannerSettings, content, str(constraints or pooling or "flags"))


def measured_pooling(schema: Schema) -> dict[str, float]:
    """Mean ids per sample of every feature with a table, over the first row groups of each domain's training files.

    A feature counts nothing in rows of domains without it, as in a batch of mixed domains.
    """
    columns = {feature.column: feature for table in schema.tables() for feature in table.features}
    ids = dict.fromkeys(columns, 0)
    rows = 0
    for name, domain in schema.domains.items():
        files = ParquetFiles(domain.train, schema.root, lambda file, found: None)
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
