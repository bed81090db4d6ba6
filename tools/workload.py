"""What tools plan: the tables of a list, with their planner settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_xd.distributed.optimizers import TableOptimizer, announce_optimizer
from torchrec_xd.distributed.sharders import torchrec_sharders
from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import PlannerSettings
from torchrec_xd.planner.inputs.table_lists import load_constraints, load_tables
from torchrec_xd.planner.inputs.tables import Sharders, TableModule, WeightType
from torchrec_xd.settings import load_yaml, validate


@dataclass(frozen=True)
class Workload:
    """A module on the meta device and how it is to be planned."""

    module: nn.Module
    optimizer: TableOptimizer
    """Fused into the tables that are trained."""
    sharders: Sharders
    """What offers ways to shard them."""
    settings: PlannerSettings


def list_workload(path: Path, weights: WeightType, optimizer: TableOptimizer) -> Workload:
    """The tables of a list.

    Raises:
        UserError: file and line of each fault.
    """
    listed = load_tables(path)
    module = TableModule(listed, weights)
    announce_optimizer(module, optimizer)
    return Workload(
        module, optimizer, torchrec_sharders(), PlannerSettings(pooling=listed.pooling(), constraints=listed.constraints)
    )


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
    given: dict[str, Any] = {"batch_size": batch_size, "effort": effort}
    content = {**settings.model_dump(), **{key: value for key, value in given.items() if value is not None}}
    wished = validate(PlannerSettings, content, "flags")
    if constraints is not None:
        wished = wished.model_copy(update={"constraints": (*wished.constraints, *load_constraints(constraints))})
    return wished if pooling is None else _with_means(wished, pooling)


def _with_means(settings: PlannerSettings, path: Path) -> PlannerSettings:
    means = load_yaml(path)
    for feature in means:
        if feature not in settings.pooling:
            raise UserError(f"{path}: no feature '{feature}'; features: {', '.join(settings.pooling)}")
    return validate(PlannerSettings, {**settings.model_dump(), "pooling": {**settings.pooling, **means}}, str(path))
