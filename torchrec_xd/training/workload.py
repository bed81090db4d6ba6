"""Planning away from training: the tables of a run config, of a schema or of a list, as a run would hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_xd.config import RunConfig, load_config
from torchrec_xd.data.pooling import measured_pooling
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.distributed.optimizers import announce_optimizer
from torchrec_xd.distributed.sharders import sharders, torchrec_sharders
from torchrec_xd.embeddings import Embeddings, EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.planner import (
    Cluster,
    PlannerSettings,
    Planning,
    TableList,
    TableModule,
    load_cluster,
    load_constraints,
    make_plan,
    schema_tables,
)
from torchrec_xd.planner.inputs.tables import Sharders
from torchrec_xd.schema import Schema
from torchrec_xd.settings import load_yaml, validate
from torchrec_xd.shipped import CLUSTERS
from torchrec_xd.table_types import PlannedDtype, TableOptimizer
from torchrec_xd.training.building import build, source_run


@dataclass(frozen=True)
class Workload:
    """A module on the meta device and how it is to be planned."""

    module: nn.Module
    optimizer: TableOptimizer
    """Fused into the tables that are trained."""
    sharders: Sharders
    """What may be sharded, and how."""
    settings: PlannerSettings


def plan(source: RunConfig | Schema | TableList, cluster: str | Cluster = "8xH100", **settings: Any) -> Planning:
    """Plan how tables are sharded over a cluster; needs neither the cluster nor the data.

    Args:
        source: a run config or a schema, whose tables are planned as a run would hold them; or a table list.
        cluster: name of a shipped profile (`torchrec-xd config list`, clusters/), path of one, or a `Cluster`.
        settings: fields of `PlannerSettings` (`batch_size`, `pooling`, `constraints`, `effort`). Default: the config's.

    Returns:
        The plan as `.plan`, which `Plan.save` writes for training; what it was chosen from; and how long that took.

    Raises:
        InfeasibleError: no plan fits; the error says what does not, and by how many bytes.
        UserError: an unknown cluster, or settings that are not valid.
    """
    work = workload(source)
    content = {**work.settings.model_dump(), **settings}
    where = cluster if isinstance(cluster, Cluster) else load_cluster(cluster, CLUSTERS)
    return make_plan(work.module, work.sharders, where, validate(PlannerSettings, content, "plan"))


def read_source(path: Path) -> RunConfig | Schema:
    """A run config, or a schema: whichever the file is."""
    return load_schema(path) if "features" in load_yaml(path) else load_config(path)


def workload(
    source: RunConfig | Schema | TableList,
    weights: PlannedDtype | None = None,
    optimizer: TableOptimizer | None = None,
    *,
    measure_pooling: bool = False,
) -> Workload:
    """The tables of a run config, a schema or a list, with their planner settings.

    Args:
        source: what is planned.
        weights: type of the weights. Default: the config's, else fp32.
        optimizer: of the tables. Default: the config's, else rowwise_adagrad.
        measure_pooling: take the mean ids per sample from the training files.

    Raises:
        UserError: bf16 for a run, which does not store it; or pooling is to be measured for a list, which has no data.
    """
    if isinstance(source, TableList):
        return _list_workload(source, weights or "fp32", optimizer or "rowwise_adagrad", measure_pooling)
    if weights == "bf16":
        raise UserError("a run stores its tables as fp32 or fp16, not bf16; plan a table list for bf16")
    if isinstance(source, Schema):
        return _schema_workload(source, EmbeddingSettings(dtype=weights or "fp32"), optimizer, measure_pooling)
    return _run_workload(source, weights, optimizer, measure_pooling)


def _list_workload(
    tables: TableList, weights: PlannedDtype, optimizer: TableOptimizer, measure_pooling: bool
) -> Workload:
    if measure_pooling:
        raise UserError("--measure-pooling needs a config: a table list has no data")
    module = TableModule(tables, weights)
    announce_optimizer(module, optimizer)
    settings = PlannerSettings(pooling=tables.pooling(), constraints=tables.constraints)
    return Workload(module, optimizer, torchrec_sharders(), settings)


def _schema_workload(
    schema: Schema, embeddings: EmbeddingSettings, optimizer: TableOptimizer | None, measure_pooling: bool
) -> Workload:
    tables, chosen = Embeddings(schema, embeddings, seed=0), optimizer or "rowwise_adagrad"
    announce_optimizer(tables, chosen)
    # The path under which a trained model holds its tables.
    module = nn.ModuleDict({"embeddings": tables})
    return Workload(module, chosen, sharders(), PlannerSettings(pooling=_pooling(schema, measure_pooling)))


def _run_workload(
    config: RunConfig, weights: PlannedDtype | None, optimizer: TableOptimizer | None, measure_pooling: bool
) -> Workload:
    if weights is not None:
        config = config.model_copy(update={"embeddings": config.embeddings.model_copy(update={"dtype": weights})})
    model, chosen = build(config, source_run(config)), optimizer or config.optimizer.tables.name
    announce_optimizer(model.embeddings, chosen)
    if model.teacher is not None:
        announce_optimizer(model.teacher, "sgd")  # frozen tables keep no optimizer state
    settings = PlannerSettings(
        batch_size=config.loader.batch_size,
        pooling=_pooling(config.schema_in_use, measure_pooling),
        constraints=config.sharding.all_constraints,
    )
    return Workload(model, chosen, sharders(config.sharding.communication), settings)


def _pooling(schema: Schema, measured: bool) -> dict[str, float]:
    return schema_tables(schema, measured_pooling(schema) if measured else {}).pooling()


def with_files(
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
    given: dict[str, Any] = {"batch_size": batch_size, "effort": effort}
    content = {**settings.model_dump(), **{key: value for key, value in given.items() if value is not None}}
    changed = validate(PlannerSettings, content, "flags")
    if constraints is not None:
        changed = changed.model_copy(update={"constraints": (*changed.constraints, *load_constraints(constraints))})
    return changed if pooling is None else _with_means(changed, pooling)


def _with_means(settings: PlannerSettings, path: Path) -> PlannerSettings:
    means = load_yaml(path)
    for feature in means:
        if feature not in settings.pooling:
            raise UserError(f"{path}: no feature '{feature}'; features: {', '.join(settings.pooling)}")
    return validate(PlannerSettings, {**settings.model_dump(), "pooling": {**settings.pooling, **means}}, str(path))
