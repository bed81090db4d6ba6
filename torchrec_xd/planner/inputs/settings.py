"""Settings of the planner and of a run's sharding."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchrec_xd.distributed.exchange import CommunicationSettings
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.settings import LocalPath, Settings


class PlannerSettings(Settings):
    """Settings of the planner, besides the tables and the cluster."""

    batch_size: PositiveInt = 512
    """Samples per rank and step."""
    pooling: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Mean ids per sample, by feature. Default: 1 for each."""
    constraints: tuple[Constraint, ...] = ()
    """Pins, bans and co-locations of tables."""
    effort: PositiveInt = 400
    """Consecutive non-improving iterations after which the search ends. The same effort always finds the same plan."""


class ShardingSettings(Settings):
    """How the tables of a run may be sharded."""

    types: tuple[Literal["table_wise", "column_wise", "table_column_wise", "row_wise", "data_parallel"], ...] = Field(
        default=("table_wise",), min_length=1
    )
    """Sharding types to choose from, for all tables. (grid_shard and table_row_wise need GPUs and a plan file.)"""
    constraints: tuple[Constraint, ...] = ()
    """Pins, bans and co-locations of single tables. On GPUs `forbid: [fused_uvm_caching, fused_uvm]` keeps tables in
    HBM; otherwise they go to host memory where HBM is short."""
    plan: LocalPath | None = None
    """A plan that `torchrec-xd plan make --out` wrote. Default: planned when the run starts."""
    communication: CommunicationSettings = CommunicationSettings()
    """Precision in which ranks exchange embeddings and gradients."""

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
            return "add it to types, or choose one of these"
        return f"it needs GPUs and a plan file (sharding.plan); types may be: {', '.join(valid)}"

    @property
    def all_constraints(self) -> tuple[Constraint, ...]:
        """`types` and `constraints` as constraints of the planner.

        Sharded tables use fused kernels, which update in the backward pass; replicated ones have dense kernels only. On
        GPUs, tables that HBM has no room for are kept in host memory (`fused_uvm_caching`: with a cache in HBM,
        `fused_uvm`: without one), unless a constraint forbids these kernels.
        """
        fused = ("fused", "fused_uvm_caching", "fused_uvm")
        kernels = (*fused, "dense") if "data_parallel" in self.types else fused
        return (Constraint(tables=("*",), sharding_types=self.types, kernels=kernels), *self.constraints)
