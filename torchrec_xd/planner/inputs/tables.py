"""Table lists: written by hand or taken from a schema, and made into a module on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from torch import nn
from torchrec.distributed.types import ModuleSharder
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from torchrec_xd.embeddings import TABLE_DTYPES
from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.schema import Schema
from torchrec_xd.settings import Settings
from torchrec_xd.table_types import MAX_DIM, MAX_ROWS, PlannedDtype

Sharders = Sequence[ModuleSharder[nn.Module]]

EMPTY_DICT = nn.ModuleDict()
"""Embedding collections keep their tables in a ModuleDict, whose attributes cannot be names of tables."""


class TableSpec(Settings):
    """One table of a list."""

    name: str = Field(min_length=1)
    """Unique name."""
    rows: int = Field(gt=0, le=MAX_ROWS)
    """Number of embeddings."""
    dim: int = Field(gt=0, le=MAX_DIM)
    """Embedding dimension; FBGEMM requires a multiple of 4."""
    features: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names of the features that look up the table, or their number. Default: one feature, named like the table."""
    pooling: tuple[PositiveFloat, ...] = (1.0,)
    """Mean ids per sample, one number for all features or one each."""
    sequence: bool = False
    """Looked up without pooling (EmbeddingCollection)."""
    weighted: bool = False
    """Pooled with a weight per id."""
    dtype: PlannedDtype | None = None
    """Type of the weights. Default: that of the whole list."""

    @field_validator("features", mode="before")
    @classmethod
    def _read_features(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str):
            value = int(value) if value.strip().isdigit() else [part.strip() for part in value.split(";")]
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError(f"a table needs at least one feature, not {value}")
            return tuple(f"{info.data.get('name')}_{i}" for i in range(value))
        return value

    @field_validator("pooling", mode="before")
    @classmethod
    def _read_pooling(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(";"))
        return value if isinstance(value, list | tuple) else (value,)

    @model_validator(mode="after")
    def _check(self) -> TableSpec:
        if self.sequence and self.weighted:
            raise ValueError(f"table '{self.name}' is looked up without pooling: weights belong to pooled tables")
        if "." in self.name or hasattr(EMPTY_DICT, self.name):
            raise ValueError(
                f"table '{self.name}': torch modules reserve this name, or forbid its dot; rename the table"
            )
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"table '{self.name}' names a feature twice: {', '.join(self.features)}")
        if self.dim % 4:
            raise ValueError(f"dim {self.dim} of table '{self.name}' is no multiple of 4; FBGEMM requires one")
        if len(self.pooling) not in (1, len(self.feature_names)):
            raise ValueError(
                f"table '{self.name}' has {len(self.feature_names)} features and {len(self.pooling)} pooling factors; "
                "give one for all features or one for each"
            )
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features; at least one."""
        return self.features or (self.name,)

    def pooling_of(self) -> dict[str, float]:
        """Feature to mean ids per sample."""
        factors = self.pooling * len(self.feature_names) if len(self.pooling) == 1 else self.pooling
        return dict(zip(self.feature_names, factors, strict=True))


class TableList(Settings):
    """Tables and the constraints that a plan must keep."""

    tables: tuple[TableSpec, ...]
    """All tables."""
    constraints: tuple[Constraint, ...] = ()
    """Pins, bans and co-locations."""

    def pooling(self) -> dict[str, float]:
        """Feature to mean ids per sample, over all tables."""
        return {feature: factor for table in self.tables for feature, factor in table.pooling_of().items()}


class TableModule(nn.Module):
    """A list's tables as a module: pooled in `bags` and `weighted_bags`, the others by dimension in `sequences`."""

    def __init__(self, tables: TableList, dtype: PlannedDtype) -> None:
        super().__init__()
        meta = torch.device("meta")
        pooled, weighted = (
            [EmbeddingBagConfig(**_config(t, dtype)) for t in tables.tables if not t.sequence and t.weighted == kind]
            for kind in (False, True)
        )
        self.bags = EmbeddingBagCollection(pooled, device=meta) if pooled else None
        self.weighted_bags = EmbeddingBagCollection(weighted, is_weighted=True, device=meta) if weighted else None
        unpooled: dict[int, list[EmbeddingConfig]] = {}
        for table in tables.tables:
            if table.sequence:
                unpooled.setdefault(table.dim, []).append(EmbeddingConfig(**_config(table, dtype)))
        # All tables of an EmbeddingCollection must have the same dimension.
        self.sequences = nn.ModuleDict(
            {f"dim_{dim}": EmbeddingCollection(configs, device=meta) for dim, configs in unpooled.items()}
        )


def _config(table: TableSpec, dtype: PlannedDtype) -> dict[str, Any]:
    return {
        "name": table.name,
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "feature_names": list(table.feature_names),
        "data_type": TABLE_DTYPES[table.dtype or dtype],
    }


def schema_tables(schema: Schema, pooling: Mapping[str, float]) -> TableList:
    """The tables of a schema. Features that `pooling` does not name have one id per row, sequences their length.

    Raises:
        UserError: `pooling` names a feature that has no table.
    """
    tables = schema.tables()
    known = [feature.column for table in tables for feature in table.features]
    for name in pooling:
        if name not in known:
            raise UserError(f"pooling of '{name}': no such feature with a table; features: {', '.join(known)}")
    return TableList(
        tables=tuple(
            TableSpec(
                name=table.name,
                rows=table.rows,
                dim=table.dim,
                features=tuple(feature.column for feature in table.features),
                pooling=tuple(float(pooling.get(f.column, f.length or 1)) for f in table.features),
                sequence=table.sequential,
                weighted=table.collection == "weighted_bags",
            )
            for table in tables
        )
    )
