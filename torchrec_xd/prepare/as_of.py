"""Totals and histories of events strictly before a row's time, as Ibis expressions that all engines run alike.

Rows and events of a key are laid out in one order of time, where rows come before the events of their own instant, and
running totals over it tell every row what was before. The work grows with rows plus events, also where one key has most
of them: nothing is joined by a range of time, and no frame slides.

*Rows* have `_row` (int64, unique), `_time` (int64, microseconds since 1970 in UTC; a row without one has no past) and
the columns of `by`; *events* have `_time`, the columns of `by` and what is asked for. Keys and times that are null
match nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.datatypes as dt
from ibis import _
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
_ZERO, _ONE, _NULL = ibis.literal(0, "int64"), ibis.literal(1, "int64"), ibis.null("int64")


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
    per: str | None = None
    """Column of numbers: `share` divides by its sum, over the events that have both."""


def totals_as_of(rows: Table, events: Table, by: Sequence[str], totals: Mapping[str, PastTotal]) -> Table:
    """Totals of the events before each row, in one sort however many they are.

    Returns:
        `_row` and a column for each total, in any order of rows: int64 for `count` and for `sum` of integers, else
        float64. Where nothing was, `count` and `sum` are 0, `share` and `days_since` are null.
    """
    events = _known(events, by)
    conditions = [total.where for total in totals.values() if total.where is not None]
    if len(conditions) == len(totals):
        events = events.filter(ibis.or_(*(events[condition] for condition in conditions)))
    parts = {name: _parts(events, total) for name, total in totals.items()}
    steps = {_step(name, part): step for name, found in parts.items() for part, step in found.items()}
    nothing = {step: _NULL if step.startswith("last") else _ZERO for step in steps}
    layers = [_layer(rows, rows, events, by, nothing), _layer(events, rows, events, by, steps)]
    for days in sorted({total.days for total in totals.values() if total.days is not None}):
        # Events leave the sums of a window when it is over.
        ending = [_step(name, part) for name in totals if totals[name].days == days for part in parts[name]]
        leaving = {step: -steps[step] for step in ending if not step.startswith("last")}
        if leaving:
            layers.append(_layer(events, rows, events, by, nothing | leaving, later=_micros(days)))
    line = ibis.union(*layers)
    reached = {step: line[step].max() if step.startswith("last") else line[step].sum() for step in steps}
    line = line.select("_row", "_order", **{step: value.over(_so_far(by)) for step, value in reached.items()})
    known = line.filter(line._row.notnull())
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
        order: columns that order the events of an instant; after them `columns` do, so that nothing is left to chance.

    Returns:
        `_row` and a list for each of `columns`, oldest first, in any order of rows; empty where nothing was.
    """
    events = _known(events, by)
    names = {column: f"_value{number}" for number, column in enumerate(dict.fromkeys([*order, *columns]))}
    nothing = {name: ibis.null(events[column].type()) for column, name in names.items()}
    values = {name: events[column] for column, name in names.items()}
    line = ibis.union(
        _layer(rows, rows, events, by, {"_event": _NULL, **nothing}),
        _layer(events, rows, events, by, {"_event": _ONE, **values}),
    )
    # A count of what is not null: with a condition, DuckDB would count from the beginning for every row.
    line = line.mutate(_count=line._event.count().over(_so_far(by, names.values())))
    line = line.mutate(_chunk=(line._count - 1) // length)

    # Every `length` events of a key are a chunk: the last ones before a row are in its chunk and the chunk before.
    keys = [*_keys(by), "_chunk"]
    entry = ibis.struct({"_count": _._count, **{column: _[names[column]] for column in columns}})
    chunks = line.filter(_._row.isnull()).group_by(keys).agg(_entries=entry.collect().sort())
    before = chunks._entries.lag().over(ibis.window(group_by=_keys(by), order_by="_chunk"))
    chunks = chunks.mutate(_entries=before.fill_null(_empty(before)).concat(chunks._entries))
    chunks = chunks.select(*keys, **{column: chunks._entries.map(_[column]) for column in columns})
    found = line.filter(_._row.notnull()).select("_row", "_count", *keys).left_join(chunks, keys)
    stop = found._count - ibis.greatest(found._chunk - 1, 0) * length
    start = ibis.greatest(stop - length, 0)
    return found.select("_row", **{name: found[name][start:stop].fill_null(_empty(found[name])) for name in columns})


def _known(events: Table, by: Sequence[str]) -> Table:
    return events.filter(events._time.notnull(), *(events[key].notnull() for key in by))


def _keys(by: Sequence[str]) -> list[str]:
    return [f"_key{number}" for number in range(len(by))]


def _layer(
    table: Table, rows: Table, events: Table, by: Sequence[str], columns: Mapping[str, Value], later: int = 0
) -> Table:
    """A part of the line of time: all rows, or all events, so many microseconds after they happened."""
    types = [dt.highest_precedence([rows[key].type(), events[key].type()]).copy(nullable=True) for key in by]
    keys = {name: table[key].cast(kind) for name, key, kind in zip(_keys(by), by, types, strict=True)}
    moment = table._time.cast("int64")
    if table is rows:
        row = table._row.cast(dt.int64)
        return table.select(_row=row, _order=moment.fill_null(_BEFORE_ALL) * 2, **keys, **columns)
    return table.select(_row=_NULL, _order=(moment + later) * 2 + 1, **keys, **columns)


def _so_far(by: Sequence[str], ties: Iterable[str] = ()) -> Any:
    return ibis.window(group_by=_keys(by), order_by=["_order", *ties], preceding=None, following=0)


def _step(name: str, part: str) -> str:
    return f"{part}_{name}"


def _parts(events: Table, total: PastTotal) -> dict[str, Value]:
    """What an event adds to each running total that `total` is made of; `last` is its place in the order."""
    chosen = events[total.where] if total.where is not None else ibis.literal(True)
    if total.what == "days_since":
        return {"last": chosen.ifelse(events._time * 2 + 1, _NULL)}
    if total.what == "count":
        return {"count": chosen.ifelse(_ONE, _ZERO)}
    number = _exact(events[total.value])
    weight = _ONE if total.per is None else _exact(events[total.per])
    known = chosen & number.notnull() & weight.notnull()
    parts = {"sum": known.ifelse(number, _ZERO), "count": known.ifelse(weight, _ZERO)}
    return parts if total.what == "share" else {"sum": parts["sum"]}


def _exact(value: Value) -> Value:
    """A number to add up: integers as they are, others in millionths; null for NaN."""
    if _is_whole(value):
        return value.cast("int64")
    value = value.cast("float64")
    return value.isnan().ifelse(ibis.null("float64"), value * MILLIONTHS + 0.5).floor()


def _total(known: Table, events: Table, name: str, total: PastTotal) -> Value:
    """A total of its parts."""
    if total.what == "days_since":
        ago = known._order + 1 - known[_step(name, "last")]
        days = ago / (2 * DAY)
        return days if total.days is None else (ago <= 2 * _micros(total.days)).ifelse(days, ibis.null("float64"))
    if total.what == "count":
        return known[_step(name, "count")].cast(_INT64)
    amount = known[_step(name, "sum")].cast(_INT64)
    if not _is_whole(events[total.value]):
        amount = amount / MILLIONTHS
    if total.what == "sum":
        return amount
    count = known[_step(name, "count")].cast(_INT64).nullif(0)
    return amount / (count if total.per is None or _is_whole(events[total.per]) else count / MILLIONTHS)


def _is_whole(value: Value) -> bool:
    return bool(value.type().is_boolean() or value.type().is_integer())


def _micros(days: float) -> int:
    return max(1, round(days * DAY))


def _empty(lists: Value) -> Value:
    return ibis.literal([], type=lists.type())
