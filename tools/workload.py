"""What tools plan: the tables of a list, with their planner settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from torchrec_xd.planner.planning import PlannerSettings
from torchrec_xd.planner.tables import OptimizerName, TableModule, WeightType, load_tables, set_optimizer
from torchrec_xd.settings import UserError, load_yaml, validate


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
