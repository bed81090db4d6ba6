"""Numbers as ids: fixed edges, so that a bucket means the same in every data set; row 0 is "not known"."""

from __future__ import annotations

import ibis
from ibis.expr.types import Value


def log_edges(top: int) -> tuple[int, ...]:
    """Edges 1, 2, 3, 4, 6, 8, 12 … up to `top`, a power of two: two a doubling."""
    edges = [1, 2]
    while edges[-1] < top:
        edges += [edges[-1] * 3 // 2, edges[-1] * 2]
    return tuple(edges)


COUNTS = log_edges(128)
LARGE_COUNTS = log_edges(32_768)
CENTS = log_edges(65_536)
DAYS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 22, 29, 43, 57, 85, 113, 169, 225, 337)
PERCENTS = (1, 3, 5, 8, 10, 13, 15, 18, 20, 25, 30, 35, 40, 50, 60)
NEVER_DAYS = 400
"""Stands for "never" where a number of days must be a number: longer than the data."""


def bucket(value: Value, edges: tuple[int, ...]) -> Value:
    """0 where null, else 1 + the number of `edges` (ascending) that `value` has reached, up to len(edges) + 1."""
    reached = [(value >= edge, place + 2) for place, edge in enumerate(edges)]
    return ibis.cases((value.isnull(), 0), *reversed(reached), else_=1).cast("int32")


def count_bucket(count: Value, edges: tuple[int, ...] = COUNTS) -> Value:
    """The bucket of a count whose null means none."""
    return bucket(count.fill_null(0), edges)


def log1p(value: Value) -> Value:
    """ln(1 + value) as float32, 0 where null."""
    return (value.fill_null(0).cast("float64") + 1.0).ln().cast("float32")
