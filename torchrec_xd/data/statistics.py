"""Row groups whose statistics say that a value breaks a rule, found without reading rows.

DuckDB reads the statistics: over damaged ones PyArrow 26 ends the process (a C++ exception that it does not catch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

_DOUBTFUL = """
    SELECT DISTINCT row_group_id
    FROM parquet_metadata($file)
    JOIN (SELECT unnest($leaf) AS leaf, unnest($low) AS low, unnest($high) AS high, unnest($nulls) AS nulls)
        ON column_id = leaf
    WHERE try_cast(coalesce(stats_min_value, stats_min) AS DOUBLE) < low
        OR try_cast(coalesce(stats_max_value, stats_max) AS DOUBLE) > high
        OR (coalesce(stats_min_value, stats_min) IS NULL) != (coalesce(stats_max_value, stats_max) IS NULL) -- infinite
        OR (NOT nulls AND stats_null_count > 0)
"""


@dataclass(frozen=True)
class Limits:
    """What the values of a column keep to, as far as statistics can tell."""

    column: str
    low: float | None = None
    high: float | None = None
    nulls: bool = True


class Statistics:
    """Looks at the statistics of local files."""

    def __init__(self, limits: Sequence[Limits]):
        self._limits = limits
        self._engine = duckdb.connect(config={"threads": 1}) if limits else None

    def doubtful(self, file: str, schema: pa.Schema) -> set[int]:
        """Indices of row groups with a column outside its limits; none where nothing is known."""
        limits = leaf_limits(schema, self._limits)
        if self._engine is None or not limits:
            return set()
        values = {
            "file": [file],
            "leaf": [leaf for leaf, _ in limits],
            "low": [limit.low for _, limit in limits],
            "high": [limit.high for _, limit in limits],
            "nulls": [limit.nulls for _, limit in limits],
        }
        try:
            with self._engine.cursor() as cursor:
                return {index for (index,) in cursor.execute(_DOUBTFUL, values).fetchall()}
        except duckdb.Error:  # a footer that only PyArrow can read: bad values are found when they are read
            return set()


def leaf_limits(schema: pa.Schema, limits: Sequence[Limits]) -> list[tuple[int, Limits]]:
    """The limits of columns that are one leaf column in Parquet, lists too, each with the leaf's index."""
    first, leaf = 0, {}
    for field in schema:
        count = _leaf_count(field.type)
        if count == 1:
            leaf[field.name] = first
        first += count
    return [(leaf[limit.column], limit) for limit in limits if limit.column in leaf]


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
