"""What was known before: totals and lists of events, looked up strictly before a row's day.

A *day* counts from 2017-01-01. Every sum is over integers (money in cents), so that it does not depend on the order of
summation.
"""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Column, Table, Value

_NEVER = 1_000_000
"""A day after all days."""


def running(events: Table, keys: list[str], **daily: Value) -> Table:
    """Running totals per key.

    Args:
        events: rows with `keys` and `day`.
        keys: what a total is kept for.
        daily: aggregates of the events of a day; a total is the sum of a key's daily aggregates so far.

    Returns:
        Rows (keys, day, until, totals): the totals stand at every later day up to and including `until`.
    """
    days = events.group_by([*keys, "day"]).agg(**daily)
    so_far = ibis.window(group_by=keys, order_by="day", preceding=None, following=0)
    return days.mutate(until=_until(days, keys, []), **{name: days[name].sum().over(so_far) for name in daily})


def latest(events: Table, keys: list[str], order: list[str], length: int, **columns: str) -> Table:
    """The last events per key as lists, oldest first.

    Args:
        events: rows with `keys`, `day`, `order` and the columns, none null.
        keys: whose events make a list.
        order: columns that order a day's events.
        length: entries of a list at most.
        columns: name of the list = column of its entries.

    Returns:
        Rows (keys, day, until, lists): the lists stand at every later day up to and including `until`.
    """
    last = ibis.window(group_by=keys, order_by=["day", *order], preceding=length - 1, following=0)
    lists = {name: events[column].collect().over(last) for name, column in columns.items()}
    by_event = events.select(*keys, "day", until=_until(events, keys, order), **lists)
    return by_event.filter(_.until > _.day)


def _until(events: Table, keys: list[str], order: list[str]) -> Column:
    return events.day.lead().over(ibis.window(group_by=keys, order_by=["day", *order])).fill_null(_NEVER)


def as_of(rows: Table, facts: Table, keys: list[str], prefix: str, day: str = "day") -> Table:
    """`rows` with the facts that stood strictly before their day, null where there were none.

    Args:
        rows: any table with `keys` and the column `day`.
        facts: from `running` or `latest`.
        keys: columns of both.
        prefix: every column of `facts` is added as `<prefix>_<column>`; `<prefix>_day` is the day of the last event.
        day: column of `rows`.
    """
    facts = facts.rename(f"{prefix}_{{name}}")
    same = [rows[key] == facts[f"{prefix}_{key}"] for key in keys]
    return rows.left_join(facts, [*same, facts[f"{prefix}_day"] < rows[day], rows[day] <= facts[f"{prefix}_until"]])
