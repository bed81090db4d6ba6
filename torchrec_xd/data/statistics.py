"""What statistics say of values without reading rows: ranges, and row groups in which a value breaks a rule.

DuckDB reads the statistics: over damaged ones PyArrow 26 ends the process (a C++ exception that it does not catch).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import or_
from typing import Any

import pyarrow as pa

from torchrec_xd.data.limits import Limits, Range

_BATCH = 256
"""Files in one query: planning it costs as much as reading ten footers."""
_LOOK = """
    WITH known AS (
        SELECT
            file_name, row_group_id, column_id, num_values, stats_null_count AS nulls,
            lower(coalesce(stats_min_value, stats_min)) AS lowest,
            lower(coalesce(stats_max_value, stats_max)) AS greatest
        FROM parquet_metadata($files)
    ), numbers AS (
        SELECT *,
            CASE lowest WHEN 'false' THEN 0 WHEN 'true' THEN 1 ELSE try_cast(lowest AS DOUBLE) END AS minimum,
            CASE greatest WHEN 'false' THEN 0 WHEN 'true' THEN 1 ELSE try_cast(greatest AS DOUBLE) END AS maximum
        FROM known
    ), judged AS (
        SELECT file_name, row_group_id, leaf, num_values, numbers.nulls AS nulls, minimum, maximum,
            numbers.nulls IS NOT NULL
            AND (numbers.nulls = num_values OR (minimum IS NOT NULL AND maximum IS NOT NULL)) AS whole,
            coalesce(minimum < low, false)
            OR coalesce(maximum > high, false)
            OR (lowest IS NULL) != (greatest IS NULL) -- infinite
            OR (NOT allowed AND coalesce(numbers.nulls, 0) > 0) AS doubtful
        FROM numbers
        JOIN (SELECT unnest($leaf) AS leaf, unnest($low) AS low, unnest($high) AS high, unnest($nulls) AS allowed)
            ON leaf = column_id
    )
    SELECT leaf, bool_and(whole), min(minimum), max(maximum), sum(num_values)::BIGINT, sum(nulls)::BIGINT,
        coalesce(list([file_name, row_group_id::VARCHAR]) FILTER (doubtful), [])
    FROM judged
    GROUP BY leaf
"""


@dataclass(frozen=True)
class Found:
    """What the statistics of some files of one Arrow schema say."""

    doubtful: frozenset[tuple[str, int]] = frozenset()
    """Files and indices of row groups with a column outside its limits."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Of the columns whose statistics are whole, in all of the files."""

    def __or__(self, other: Found) -> Found:
        both = {column: self.ranges[column] | other.ranges[column] for column in self.ranges if column in other.ranges}
        return Found(self.doubtful | other.doubtful, both)


class Statistics:
    """Looks at the statistics of local files."""

    def __init__(self, limits: Sequence[Limits]):
        self._limits = limits
        self._engine: Any = None
        if limits:
            import duckdb  # noqa: PLC0415 - what scores without limits needs no engine

            self._engine, self._error = duckdb.connect(config={"threads": 1}), duckdb.Error

    def look(self, files: Mapping[pa.Schema, Sequence[str]]) -> dict[pa.Schema, Found]:
        """What is known of the columns that have limits; nothing where a file has no statistics.

        Args:
            files: at least one, each with rows, of every schema.
        """
        if self._engine is None:
            return dict.fromkeys(files, Found())
        limits = {schema: leaf_limits(schema, self._limits) for schema in files}
        batches = [
            (schema, own[i : i + _BATCH])
            for schema, own in files.items()
            for i in range(0, len(own) if limits[schema] else 0, _BATCH)
        ]
        known: dict[pa.Schema, list[Found]] = {schema: [] for schema in files}
        with ThreadPoolExecutor() as pool:
            looked = pool.map(lambda batch: self._look(limits[batch[0]], batch[1]), batches)
            for (schema, _), found in zip(batches, looked, strict=True):
                known[schema].append(found)
        return {schema: reduce(or_, each) if each else Found() for schema, each in known.items()}

    def _look(self, limits: list[tuple[int, Limits]], files: Sequence[str]) -> Found:
        named: dict[str, list[str]] = {}  # as DuckDB names them where it resolves a pattern: without "..", "." and "//"
        for file in files:
            named.setdefault(os.path.join(_resolved(os.path.dirname(file)), os.path.basename(file)), []).append(file)
        values = {
            "files": [glob.escape(file) for file in named],
            "leaf": [leaf for leaf, _ in limits],
            "low": [limit.low for _, limit in limits],
            "high": [limit.high for _, limit in limits],
            "nulls": [limit.nulls for _, limit in limits],
        }
        try:
            with self._engine.cursor() as cursor:
                rows = cursor.execute(_LOOK, values).fetchall()
        except self._error:
            if len(files) == 1:  # a footer that only PyArrow can read: bad values are found when they are read
                return Found()
            middle = len(files) // 2
            return self._look(limits, files[:middle]) | self._look(limits, files[middle:])
        columns = {leaf: limit.column for leaf, limit in limits}
        return Found(
            frozenset((file, int(group)) for *_, places in rows for name, group in places for file in named[name]),
            {columns[leaf]: Range(*known) for leaf, whole, *known, _ in rows if whole},
        )


@lru_cache
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


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
