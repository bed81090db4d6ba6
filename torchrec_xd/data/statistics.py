"""What statistics say of values without reading rows: ranges, and row groups in which a value breaks a rule.

DuckDB reads the statistics: over damaged ones PyArrow 26 ends the process (a C++ exception that it does not catch).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import pyarrow as pa

from torchrec_xd.data.limits import Limits, Range

_LOOK = """
    WITH known AS (
        SELECT
            row_group_id, column_id, num_values, stats_null_count AS nulls,
            lower(coalesce(stats_min_value, stats_min)) AS lowest,
            lower(coalesce(stats_max_value, stats_max)) AS greatest
        FROM parquet_metadata($file)
    ), numbers AS (
        SELECT *,
            CASE lowest WHEN 'false' THEN 0 WHEN 'true' THEN 1 ELSE try_cast(lowest AS DOUBLE) END AS minimum,
            CASE greatest WHEN 'false' THEN 0 WHEN 'true' THEN 1 ELSE try_cast(greatest AS DOUBLE) END AS maximum
        FROM known
    )
    SELECT row_group_id, leaf, num_values, numbers.nulls, minimum, maximum,
        coalesce(minimum < low, false)
        OR coalesce(maximum > high, false)
        OR (lowest IS NULL) != (greatest IS NULL) -- infinite
        OR (NOT allowed AND coalesce(numbers.nulls, 0) > 0)
    FROM numbers
    JOIN (SELECT unnest($leaf) AS leaf, unnest($low) AS low, unnest($high) AS high, unnest($nulls) AS allowed)
        ON column_id = leaf
"""


@dataclass(frozen=True)
class Found:
    """What the statistics of a file say."""

    doubtful: frozenset[int] = frozenset()
    """Indices of row groups with a column outside its limits."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Of the columns whose statistics are whole."""


class Statistics:
    """Looks at the statistics of local files."""

    def __init__(self, limits: Sequence[Limits]):
        self._limits = limits
        self._engine: Any = None
        if limits:
            import duckdb  # noqa: PLC0415 - what scores without limits needs no engine

            self._engine, self._error = duckdb.connect(config={"threads": 1}), duckdb.Error

    def look(self, file: str, schema: pa.Schema) -> Found:
        """What is known of the columns that have limits; nothing where a file has no statistics."""
        limits = leaf_limits(schema, self._limits)
        if self._engine is None or not limits:
            return Found()
        values = {
            "file": [file],
            "leaf": [leaf for leaf, _ in limits],
            "low": [limit.low for _, limit in limits],
            "high": [limit.high for _, limit in limits],
            "nulls": [limit.nulls for _, limit in limits],
        }
        try:
            with self._engine.cursor() as cursor:
                rows = cursor.execute(_LOOK, values).fetchall()
        except self._error:  # a footer that only PyArrow can read: bad values are found when they are read
            return Found()
        columns = {leaf: limit.column for leaf, limit in limits}
        chunks: dict[str, list[Range | None]] = {}
        for _, leaf, count, nulls, low, high, _ in rows:
            whole = nulls is not None and (nulls == count or (low is not None and high is not None))
            chunks.setdefault(columns[leaf], []).append(Range(low, high, count, nulls) if whole else None)
        doubtful = frozenset(row[0] for row in rows if row[-1])
        return Found(doubtful, united(chunks))


def united(chunks: Mapping[str, Iterable[Range | None]]) -> dict[str, Range]:
    """Columns to the range of all their chunks; those with a chunk of which nothing is known are left out."""
    found = {}
    for column, ranges in chunks.items():
        known = list(ranges)
        whole = [each for each in known if each is not None]
        if whole and len(whole) == len(known):
            found[column] = reduce(or_, whole)
    return found


def leaf_limits(schema: pa.Schema, limits: Sequence[Limits]) -> list[tuple[int, Limits]]:
    """The limits of columns that are one leaf column in Parquet, lists too, each with the leaf's index."""
    first, leaf = 0, {}
    for column in schema:
        count = _leaf_count(column.type)
        if count == 1:
            leaf[column.name] = first
        first += count
    return [(leaf[limit.column], limit) for limit in limits if limit.column in leaf]


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
