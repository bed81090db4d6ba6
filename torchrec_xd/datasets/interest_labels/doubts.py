"""What is suspicious about labels that were computed without an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.datasets.interest_labels.report import percent
from torchrec_xd.prepare.engine import count_rows

FEW = 1000
"""Fewer than one wanted row in this many: the networks of interests have next to nothing to learn from.

A window shorter than one part in this many of a log's duration is suspicious too: a window of a day is that in a log of
three years, one of a second in a log of 17 minutes. It alone is no fault, sessions are short; it is doubtful where
`MANY_TIMES` as many rows would be wanted with a window without end.
"""
MANY_TIMES = 10
DAYS = 28
UNITS = ((10**17, "nanoseconds", 10**9), (10**14, "microseconds", 10**6), (10**11, "milliseconds", 10**3))
"""What times are in that are at least so large, and how many of it are a second."""


def doubts(
    counts: Mapping[str, Any], exposures: Table, sources: Mapping[str, Table], window: int, names: Mapping[str, str]
) -> Iterator[str]:
    """Sentences about labels of one class, and about interests that the window or the ids seem to miss.

    Args:
        counts: of all labelled rows, as `label_counts` gives them.
        exposures: what was labelled, with columns `user`, `item`, `time`, `until`.
        sources: actions by the source's name, in the order of `counts`, with `user`, `item`, `time`.
        window: the setting.
        names: what users call `user`, `item` and `time`.
    """
    rows = counts["rows"]
    if counts["acted"] in (0, rows):
        yield f"the label is {int(counts['acted'] > 0)} in all {rows:,} rows: nothing can be learnt from one class"
    for k, (source, actions) in enumerate(sources.items()):
        wanted, fit = counts[f"wanted_{k}"], counts[f"fit_{k}"]
        yield from _missed(wanted, rows, source, exposures, actions, window, names)
        if wanted == rows:
            yield f"wanted in '{source}' is 1 in all {rows:,} rows: nothing can be learnt from one class"
        if wanted and fit in (0, wanted):
            yield (
                f"of the {wanted:,} rows wanted in '{source}' {'all' if fit else 'none'} fit: nothing can be learnt "
                "from one class; see labels.consistency, ratio and support"
            )


def _missed(
    wanted: int, rows: int, source: str, exposures: Table, actions: Table, window: int, names: Mapping[str, str]
) -> Iterator[str]:
    """Whether few rows are wanted in a source, and what of."""
    if not count_rows(actions):
        yield f"sources.{source} holds no rows: nothing is wanted in '{source}'"
        return
    (first, last), (source_first, source_last) = _range(exposures), _range(actions)
    short = max(window, 1) * FEW < max(last - first, source_last - source_first)
    if wanted * FEW >= rows and not short:
        return
    earliest = actions.group_by(source_user=_.user, source_item=_.item).agg(source_time=_.time.min())
    same = [exposures.user == earliest.source_user, exposures.item == earliest.source_item]
    ever = count_rows(exposures.join(earliest, [*same, earliest.source_time < exposures.until]))
    share = f"wanted in '{source}': {percent(wanted, rows)} of rows"
    if ever * FEW < rows:
        yield (
            f"{share}; {ever:,} of {rows:,} rows have their user and item in an action of sources.{source} at any time "
            f"before their end: are the ids in '{names['user']}' and '{names['item']}' the same in both tables?"
        )
    elif wanted * FEW < rows or wanted * MANY_TIMES < ever:
        largest = max(abs(time) for time in (first, last, source_first, source_last))
        unit, per_second = next(((unit, per) for least, unit, per in UNITS if largest >= least), ("seconds", 1))
        yield (
            f"{share}, and {percent(ever, rows)} with a window without end; labels.window is {window} in the unit of "
            f"column '{names['time']}', whose values range from {first} to {last} in exposures and from {source_first} "
            f"to {source_last} in sources.{source}: if these are {unit}, {DAYS} days are {DAYS * 86400 * per_second}"
        )


def _range(table: Table) -> tuple[int, int]:
    [found] = table.agg(first=_.time.min(), last=_.time.max()).to_pyarrow().to_pylist()
    return found["first"], found["last"]
