"""Totals and histories of events strictly before a row's time, as Ibis expressions that all engines run alike.

Rows and events of a key are laid out in one order of time, where rows come before the events of their own instant, and
running totals over it tell every row what was before. The work grows with rows plus events, also where one key has most
of them: nothing is joined by a range of time, and no frame slides.

*Rows* have `_row` (int64, unique), `_time` (int64, microseconds since 1970 in UTC; a row without one has no past) and
the columns of `by`; *events* have `_time`, the columns of `by` and what is asked for. Keys and times that are null
match nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.datatypes as dt
from ibis.expr.types import Table, Value

from torchrec_xd.prepare.recipe import TotalKind

DAY = 86_400_000_000
"""Microseconds."""
MILLIONTHS = 1_000_000
"""What numbers other than integers are summed in: a sum of integers is the same in any order, and the order differs
between engines and numbers of threads."""
_BEFORE_ALL = -(2**61)
_INT64 = dt.int64(nullable=False)
"""Ibis takes DuckDB's 128-bit sums for int64 and leaves out a cast to it, but not one to this type."""
_ZERO, _NULL = ibis.literal(0, "int64"), ibis.null("int64")


@dataclass(frozen=True)
class PastTotal:
    """A `Total` of a recipe, with columns of the events in place of SQL."""

    what: TotalKind
    """`count` of events; `sum` and `share` (mean) of `value`; `days_since` the last one."""
    value: str | None = None
    """Column of numbers or booleans, for `sum` and `share`, which leave out null and NaN. Integers are exact; other
    numbers are rounded to millionths, and a sum beyond ±9.2e12 is an error of the engine."""
    where: str | None = None
    """Boolean column: only events where it is true."""
    days: float | None = None
    """Only events at most so many days before the row."""


def totals_as_of(rows: Table, events: Table, by: Sequence[str], totals: Mapping[str, PastTotal]) -> Table:
    """Totals of the events before each row, in one sort however many they are.

    Returns:
        `_row` and a column for each total, in any order of rows: int64 for `count` and for `sum` of integers, else
        float64. Where nothing was, `count` and `sum` are 0, `share` and `days_since` are null.
    """
    events = _known(events, by)
    steps = {(name, part): step for name, total in totals.items() for part, step in _steps(events, total).items()}
    layers = [_layer(rows, rows, events, by, {_column(key): _nothing(key) for key in steps})]
    for days in dict.fromkeys([None, *(total.days for total in totals.values())]):
        # An event enters the sums when it happens, and leaves those of a window when that is over.
        changes = {
            _column(key): _nothing(key)
            if days is not None and (totals[key[0]].days != days or key[1] == "last")
            else step
            if days is None
            else -step
            for key, step in steps.items()
        }
        layers.append(_layer(events, rows, events, by, changes, later=_micros(days or 0)))
    line = ibis.union(*layers)
    past = _so_far(by, [])
    known = line.select(
        "_row",
        "_order",
        **{
            column: (line[column].max() if column.startswith("last_") else line[column].sum()).over(past)
            for column in map(_column, steps)
        },
    )
    known = known.filter(known._row.notnull())
    return known.select("_row", **{name: _total(known, events, name, total) for name, total in totals.items()})


def history_as_of(
    rows: Table, events: Table, by: Sequence[str], length: int, columns: Sequence[str], order: Sequence[str] = ()
) -> Table:
    """The last `length` events before each row.

    Args:
        rows: see above.
        events: see above.
        by: columns that rows and events share.
        length: events at most.
        columns: columns of events; null entries are kept.
        order: columns that order the events of an instant; after them `columns` do, so that it is never left to chance.

    Returns:
        `_row` and a list for each of `columns`, oldest first, in any order of rows; empty where nothing was.
    """
    events = _known(events, by)
    names = {column: f"_value{number}" for number, column in enumerate(dict.fromkeys([*order, *columns]))}
    nothing = {name: ibis.null(events[column].type()) for column, name in names.items()}
    values = {name: events[column] for column, name in names.items()}
    line = ibis.union(
        _layer(rows, rows, events, by, {"_event": _NULL, **nothing}),
        _layer(events, rows, events, by, {"_event": ibis.literal(1, "int64"), **values}),
    )
    line = line.mutate(_count=line._event.count().over(_so_far(by, list(names.values()))))
    line = line.mutate(_chunk=(line._count - 1) // length)

    # Every `length` events of a key are a chunk: the last ones before a row are in its chunk and the chunk before.
    entry = ibis.struct({"place": line._count, **{column: line[name] for column, name in names.items()}})
    keys = [*_keys(by), "_chunk"]
    chunks = line.filter(line._event.notnull()).group_by(keys).agg(_entries=entry.collect().sort())
    before = chunks._entries.lag().over(ibis.window(group_by=_keys(by), order_by="_chunk"))
    chunks = chunks.mutate(_entries=before.fill_null(_empty(before)).concat(chunks._entries))
    chunks = chunks.select(*keys, **{c: chunks._entries.map(lambda e, c=c: e[c]) for c in columns})
    found = line.filter(line._row.notnull()).select("_row", "_count", *keys).left_join(chunks, keys)
    stop = found._count - (found._chunk - 1).clip(lower=0) * length
    start = (stop - length).clip(lower=0)
    return found.select("_row", **{c: found[c][start:stop].fill_null(_empty(found[c])) for c in columns})


def _known(events: Table, by: Sequence[str]) -> Table:
    return events.filter(events._time.notnull(), *(events[key].notnull() for key in by))


def _keys(by: Sequence[str]) -> list[str]:
    return [f"_key{number}" for number in range(len(by))]


def _layer(
    table: Table, rows: Table, events: Table, by: Sequence[str], columns: Mapping[str, Value], later: int = 0
) -> Table:
    """One part of the line of time: all rows, or all events, `later` microseconds after they happened."""
    types = [dt.highest_precedence([rows[key].type(), events[key].type()]).copy(nullable=True) for key in by]
    keys = {name: table[key].cast(kind) for name, key, kind in zip(_keys(by), by, types, strict=True)}
    row, order = (
        (table._row, table._time.fill_null(_BEFORE_ALL) * 2)
        if table is rows
        else (_NULL, (table._time + later) * 2 + 1)
    )
    return table.select(_row=row, _order=order, **keys, **columns)


def _so_far(by: Sequence[str], ties: Sequence[str]) -> Any:
    return ibis.window(group_by=_keys(by), order_by=["_order", *ties], preceding=None, following=0)


def _steps(events: Table, total: PastTotal) -> dict[str, Value]:
    """What an event adds to each running total that `total` is made of; `last` is a moment."""
    chosen = events[total.where] if total.where is not None else ibis.literal(True)
    if total.what == "days_since":
        return {"last": chosen.ifelse(events._time * 2 + 1, _NULL)}
    if total.what == "count":
        return {"count": chosen.ifelse(1, 0).cast("int64")}
    number = _whole(events[total.value])
    known = chosen & number.notnull()
    steps = {"sum": known.ifelse(number, 0), "count": known.ifelse(1, 0).cast("int64")}
    return steps if total.what == "share" else {"sum": steps["sum"]}


def _whole(value: Value) -> Value:
    if value.type().is_boolean() or value.type().is_integer():
        return value.cast("int64")
    number = value.cast("float64")
    return number.isnan().ifelse(ibis.null("float64"), number * MILLIONTHS + 0.5).floor()


def _total(known: Table, events: Table, name: str, total: PastTotal) -> Value:
    if total.what == "days_since":
        ago = known._order + 1 - known[_column((name, "last"))]
        days = ago / (2 * DAY)
        return days if total.days is None else (ago <= 2 * _micros(total.days)).ifelse(days, ibis.null("float64"))
    if total.what == "count":
        return known[_column((name, "count"))].cast(_INT64)
    kind = events[total.value].type()
    amount = known[_column((name, "sum"))].cast(_INT64)
    if not (kind.is_boolean() or kind.is_integer()):
        amount = amount / MILLIONTHS
    return amount / known[_column((name, "count"))].cast(_INT64).nullif(0) if total.what == "share" else amount


def _micros(days: float) -> int:
    return round(days * DAY)


def _nothing(key: tuple[str, str]) -> Value:
    return _NULL if key[1] == "last" else _ZERO


def _column(key: tuple[str, str]) -> str:
    return f"{key[1]}_{key[0]}"


def _empty(lists: Value) -> Value:
    return ibis.literal([], type=lists.type())
