"""Settings of the planner and of a run's sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.settings import Settings


class PlannerSettings(Settings):
    """What is planned besides the tables and the cluster."""

    batch_size: PositiveInt = 512
    """Samples per rank and step."""
    pooling: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Feature to mean ids per sample; 1 where not named."""
    constraints: tuple[Constraint, ...] = ()
    """Pins, bans and co-locations."""
    effort: PositiveInt = 400
    """Consecutive non-improving iterations after which the search ends. Equal efforts find equal plans."""


class ShardingSettings(Settings):
    """Where the tables of a run may lie."""

    types: tuple[Literal["table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel"], ...] = Field(
        default=("table_wise",), min_length=1
    )
    """Sharding types to choose from, for all tables. (Grid and table-row-wise are for a plan file, on GPUs.)"""
    constraints: tuple[Constraint, ...] = ()
    """Further pins, bans and co-locations, by table."""
    plan: Path | None = None
    """A plan that `torchrec-xd plan --out` wrote; Default: made when the run starts."""
    communication: CommunicationSettings = CommunicationSettings()
    """In which precision ranks exchange embeddings and gradients."""

    @model_validator(mode="after")
    def _check(self) -> ShardingSettings:
        for constraint in self.constraints:
            for kind in constraint.sharding_types or ():
                if kind not in self.types:
                    raise ValueError(
                        f"constraint on {', '.join(constraint.tables)}: {kind} is not among types "
                        f"({', '.join(self.types)}); {self._remedy(kind)}"
                    )
        return self

    def _remedy(self, kind: str) -> str:
        valid = get_args(get_args(type(self).model_fields["types"].annotation)[0])
        if kind in valid:
            return "add it there, or ask for one of these"
        return f"it is for GPUs and comes from a plan file (sharding.plan); types may be: {', '.join(valid)}"

    @property
    def all_constraints(self) -> tuple[Constraint, ...]:
        """All of these as constraints; what is sharded updates inside the backward pass, what is replicated cannot."""
        kernels = ("fused", "dense") if "data_parallel" in self.types else ("fused",)
        return (Constraint(tables=("*",), sharding_types=self.types, kernels=kernels), *self.constraints)
