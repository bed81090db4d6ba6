"""What was known before: running totals of events, looked up strictly before a row's day; and integer hashes.

A *day* counts from 2017-01-01. Every sum is over integers (money in cents), so that results are the same in any order
of summation.
"""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Column, IntegerValue, Table, Value

NEVER = 1_000_000
"""A day after all days."""
_PRIME = 2**31 - 1


def stable_hash(table: Table, columns: list[str], seed: int) -> IntegerValue:
    """A hash in [0, 2**31 - 1) of columns of non-negative integers below 2**62, the same on every engine."""
    mixed = ibis.literal(seed, "int64")
    for column in columns:
        mixed = (mixed + table[column].cast("int64")) % _PRIME * 48_271 % _PRIME
        mixed = mixed ^ (mixed // 2**15)
    return mixed * 69_621 % _PRIME


def running(events: Table, keys: list[str], **daily: Value) -> Table:
    """Running totals of `daily` aggregates per key: a row [keys, day, until, totals] holds for day < d <= until."""
    days = events.group_by([*keys, "day"]).agg(**daily)
    window = ibis.window(group_by=keys, order_by="day", preceding=None, following=0)
    totals = {name: days[name].sum().over(window) for name in daily}
    return days.mutate(**totals, until=_until(days, keys))


def latest(events: Table, keys: list[str], order: list[str], length: int, **columns: str) -> Table:
    """The last `length` values of columns per key, oldest first: rows [keys, day, until, lists] as in `running`.

    Args:
        events: with a column `day`.
        keys: whose events make a list.
        order: columns that order the events of a day.
        length: entries of a list at most.
        columns: list column = event column.
    """
    window = ibis.window(group_by=keys, order_by=["day", *order], preceding=length - 1, following=0)
    lists = events.mutate(
        **{name: events[column].collect().over(window) for name, column in columns.items()},
        until=_until(events, keys, order),
    )
    return lists.filter(_.until > _.day).select(*keys, "day", "until", *columns)


def _until(table: Table, keys: list[str], order: list[str] | None = None) -> Column:
    following = table.day.lead().over(ibis.window(group_by=keys, order_by=["day", *(order or [])]))
    return following.fill_null(NEVER)


def as_of(rows: Table, facts: Table, keys: list[str], **columns: str) -> Table:
    """`rows` (with a column `day`) plus the facts that held strictly before their day; null where there were none.

    Args:
        rows: any table.
        facts: from `running` or `latest`.
        keys: columns of both.
        columns: new column = column of `facts`; its `day` is the day of the last event.
    """
    facts = facts.select(
        **{f"_{key}": facts[key] for key in keys}, _from=facts.day, _until=facts.until, **{n: facts[c] for n, c in columns.items()}
    )
    before = [rows[key] == facts[f"_{key}"] for key in keys] + [facts._from < rows.day, rows.day <= facts._until]
    joined = rows.left_join(facts, before)
    return joined.drop("_from", "_until", *(f"_{key}" for key in keys))


def bucket(value: Column, edges: list[int]) -> Column:
    """0 where null, else 1 + the number of `edges` (ascending) that `value` has reached."""
    case = ibis.cases(*((value >= edge, place + 2) for place, edge in reversed(list(enumerate(edges)))), else_=1)
    return value.isnull().ifelse(0, case).cast("int32")


def log_edges(top: int) -> list[int]:
    """Edges 1, 2, 3, 4, 6, 8, 12 … up to `top`: two a doubling."""
    edges = [1, 2]
    while edges[-1] < top:
        edges += [edges[-1] * 3 // 2, edges[-1] * 2]
    return edges


def log1p(value: Column) -> Column:
    """ln(1 + value) as float32, 0 where null."""
    return (value.fill_null(0).cast("float64") + 1.0).ln().cast("float32")
