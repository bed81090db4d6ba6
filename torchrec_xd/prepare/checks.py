"""What is wrong with rows and events, before anything is learnt of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ibis.expr.datatypes as dt
from ibis.expr.types import BooleanValue, Table

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.features import features_of, is_read, way_of
from torchrec_xd.prepare.learning import values_of
from torchrec_xd.prepare.recipe import RecipeFeature
from torchrec_xd.prepare.recipe_file import Key, RecipeFile
from torchrec_xd.prepare.rows import SPLITS, select
from torchrec_xd.prepare.tables import Tables
from torchrec_xd.settings import MAX_FP32

YEARS = (1900, 2200)
"""Times outside are in another unit than the recipe says."""


@dataclass(frozen=True)
class RowCounts:
    """Rows of one domain and split."""

    rows: int
    positives: dict[str, int]
    """By label."""
    known: dict[str, int]
    """By label: rows that have it."""
    first: int
    """Earliest time, microseconds since 1970."""
    last: int
    """Latest time."""


def refuse_empty(file: RecipeFile, key: Key, folder: Path) -> None:
    """Refuse an input or view without rows that have a user and a time; a folder without files is what is left of it.

    Raises:
        UserError: names it.
    """
    if next(folder.rglob("*.parquet"), None) is None:
        source = (file.recipe.domains if key[0] == "domains" else file.recipe.events)[str(key[1])].rows
        raise file.fault(key, f"'{source}' has no rows; look at its files, and at the conditions of views")


def check_types(tables: Tables, file: RecipeFile, name: str, rows: Table) -> None:
    """Refuse values whose type their feature cannot use, before they are read.

    Raises:
        UserError: names feature, type, rule and remedy.
    """
    for feature in features_of(file.recipe, name):
        if is_read(feature):
            kind = values_of(tables, rows, feature).type()
            lists = feature.kind in ("bag", "sequence", "vector")
            if lists != kind.is_array():
                hint = "; text with ids in it needs a 'separator'" if kind.is_string() and lists else ""
                text = f"a {feature.kind} is {'a list' if lists else 'one value'} per row; this is {kind}{hint}"
                raise file.feature_fault(feature.column, text, "value")
            _check_type(file, feature, kind.value_type if kind.is_array() else kind, "value")


def _check_type(file: RecipeFile, feature: RecipeFeature, kind: dt.DataType, key: str) -> None:
    way = way_of(feature)
    if feature.kind in ("dense", "vector") or way in ("buckets", "quantiles", "log_buckets"):
        if not (kind.is_numeric() or kind.is_boolean()):
            raise file.feature_fault(feature.column, f"needs numbers; this is {kind}: cast it in 'value'", key)
    elif way == "as_is" and not kind.is_integer():
        raise file.feature_fault(feature.column, f"is of integers; this is {kind}: cast it, or leave it out", "as_is")
    elif not (kind.is_integer() or kind.is_string() or kind.is_boolean()):
        text = f"ids are integers or texts; this is {kind}: cast it in 'value', or use buckets"
        raise file.feature_fault(feature.column, text, key)


def check_events(file: RecipeFile, rows: Mapping[str, Table], events: Mapping[str, Table]) -> None:
    """Refuse events whose users, keys and values are of other types than those of the rows.

    Args:
        file: the recipe.
        rows: of domains, from `domain_rows`.
        events: by name, from `event_rows`.

    Raises:
        UserError: names column, both types and remedy.
    """
    first, *others = rows
    for name in others:
        _same(file, ("domains", name, "user"), (name, rows[name]._user.type()), (first, rows[first]._user.type()))
    for name, own in events.items():
        _same(file, ("events", name, "user"), (name, own._user.type()), (first, rows[first]._user.type()))
    for place, feature in enumerate(file.recipe.features):
        made = feature.history or feature.total
        if made is None:
            continue
        past = events[made.events]
        if made.where is not None and not past[f"w_{feature.column}"].type().is_boolean():
            text = f"is a condition, true or false; this is {past[f'w_{feature.column}'].type()}"
            raise file.feature_fault(feature.column, text, f"{'history' if feature.history else 'total'}.where")
        if feature.history is not None:
            _check_type(file, feature, past[f"h_{feature.column}"].type(), "history.value")
        elif feature.total is not None:
            for key, mark in (("value", "x"), ("per", "p")):
                column = f"{mark}_{feature.column}"
                if column in past.columns and not ((kind := past[column].type()).is_numeric() or kind.is_boolean()):
                    text = f"adds up numbers; this is {kind}: cast it"
                    raise file.feature_fault(feature.column, text, f"total.{key}")
            for domain in rows:
                for column in feature.total.by if feature in features_of(file.recipe, domain) else ():
                    if column != "user":
                        one, two = (table[f"b_{column}"].type() for table in (past, rows[domain]))
                        _same(file, ("features", place, "total", "by"), (made.events, one), (domain, two), column)


def _same(
    file: RecipeFile, key: Key, one: tuple[str, dt.DataType], two: tuple[str, dt.DataType], column: str = "users"
) -> None:
    if one[1].is_string() != two[1].is_string():
        text = f"{column} of '{one[0]}' are {one[1]} and those of '{two[0]}' {two[1]}, so that none would be the same"
        raise file.fault(key, f"{text}; cast one of them in a view")


@dataclass(frozen=True)
class _Rule:
    """Rows that mean nothing, and the error for so many of them."""

    broken: BooleanValue
    error: Callable[[int], UserError]


def check_rows(
    tables: Tables, file: RecipeFile, name: str, rows: Table, *, labels: bool = True
) -> dict[str, RowCounts]:
    """Count the rows of a domain, and refuse those that mean nothing.

    Raises:
        UserError: rows without user or time, values that are no label, vectors of another length, or rows that are in
            no split.
    """
    own = file.recipe.domains[name].labels if labels else {}
    rules = [*_row_rules(file, name, rows), *_feature_rules(file, name, rows)]
    for label in own:
        rules += _label_rules(tables, file, name, label, rows)
    measures = {f"_rule{i}": rule.broken.fill_null(False).cast("int64").sum() for i, rule in enumerate(rules)}
    for i, label in enumerate(own):
        measures[f"_positive{i}"] = (rows[f"l_{label}"] == 1).cast("int64").sum()
        measures[f"_known{i}"] = rows[f"l_{label}"].count()
    counted = rows.group_by("_split").agg(
        _rows=rows.count(), _first=rows._time.min(), _last=rows._time.max(), **measures
    )
    by_split = {row["_split"]: row for row in counted.to_pyarrow().to_pylist()}
    for i, rule in enumerate(rules):
        count = sum(row[f"_rule{i}"] or 0 for row in by_split.values())
        if count:
            raise rule.error(count)
    return {
        split: RowCounts(
            by_split[number]["_rows"],
            {label: by_split[number][f"_positive{i}"] or 0 for i, label in enumerate(own)},
            {label: by_split[number][f"_known{i}"] for i, label in enumerate(own)},
            by_split[number]["_first"],
            by_split[number]["_last"],
        )
        for number, split in enumerate(SPLITS)
        if number in by_split
    }


def _row_rules(file: RecipeFile, name: str, rows: Table) -> list[_Rule]:
    def fault(*key: str, text: str) -> Callable[[int], UserError]:
        return lambda count: file.fault(key, f"{count:,} rows of '{name}' {text}")

    first, last = (_micros(datetime(year, 1, 1, tzinfo=timezone.utc)) for year in YEARS)
    unit = file.recipe.domains[name].time_unit
    hint = f"; are they really {unit} since 1970?" if unit else ""
    weight = rows._weight.cast("float64")
    return [
        _Rule(rows._user.isnull(), fault("domains", name, "user", text="have no user; leave them out in a view")),
        _Rule(rows._time.isnull(), fault("domains", name, "time", text="have no time; leave them out in a view")),
        _Rule(
            (rows._time < first) | (rows._time >= last),
            fault("domains", name, "time", text=f"have a time before {YEARS[0]} or after {YEARS[1]}{hint}"),
        ),
        _Rule(rows._split == 3, fault("split", "column", text="have another value than train, valid or test")),
        _Rule(
            ~((weight > 0) & (weight < MAX_FP32)).fill_null(False),
            fault("domains", name, "weight", text="have no weight above 0"),
        ),
    ]


def _label_rules(tables: Tables, file: RecipeFile, name: str, label: str, rows: Table) -> list[_Rule]:
    domain, key = file.recipe.domains[name], ("domains", name, "labels", label)
    sql, column = domain.labels[label], rows[f"l_{label}"]

    def other(count: int) -> UserError:
        return file.fault(
            key,
            f"{count:,} rows of '{name}' have another value than 0 and 1{_example(tables, file, name, sql)}; write a "
            f"condition, for example {sql} > 0",
        )

    def missing(count: int) -> UserError:
        return file.fault(
            key,
            f"{count:,} rows of '{name}' have no value; if it is not known there, name it under 'nullable', else write "
            f"coalesce({sql}, {'false' if '=' in sql or '>' in sql else 0})",
        )

    found = [_Rule(column == 2, other)]
    return found if label in domain.nullable else [*found, _Rule(column.isnull(), missing)]


def _feature_rules(file: RecipeFile, name: str, rows: Table) -> list[_Rule]:
    """Of values whose type is right."""

    def fault(feature: RecipeFeature, key: str, text: str) -> Callable[[int], UserError]:
        return lambda count: file.feature_fault(feature.column, f"{count:,} rows of '{name}' {text}", key)

    found = []
    for feature in features_of(file.recipe, name):
        if not is_read(feature):
            continue
        value = rows[f"v_{feature.column}"]
        if feature.kind == "vector":
            text = f"hold a list of another length than {feature.length}; a vector has one length, or is null"
            found.append(_Rule(value.length() != feature.length, fault(feature, "length", text)))
            strange: Any = value.map(lambda each: each.cast("float64"))
            strange = strange.filter(lambda each: each.isnull() | each.isnan() | each.isinf()).length() > 0
            text = "hold null, NaN or infinity in the list; make the whole list null in a view"
            found.append(_Rule(strange, fault(feature, "value", text)))
        elif feature.as_is is not None and feature.separator is None:
            rows_of = feature.as_is

            def outside(each: Any, rows_of: int = rows_of) -> Any:
                return (each < 0) | (each >= rows_of)

            broken = value.filter(outside).length() > 0 if value.type().is_array() else outside(value)
            found.append(_Rule(broken, fault(feature, "as_is", f"have a value outside [0, {feature.as_is})")))
        elif feature.kind == "dense" and value.type().is_floating() and feature.clip is None:
            text = "are infinite; bound them with 'clip', or write nullif in 'value'"
            found.append(_Rule(value.isinf(), fault(feature, "value", text)))
    return found


def check_splits(file: RecipeFile, name: str, found: dict[str, RowCounts]) -> None:
    """Refuse a domain that cannot be trained on or evaluated.

    Raises:
        UserError: a split has no rows, or rows of one label value only.
    """
    times = f"{day(min(c.first for c in found.values()))} to {day(max(c.last for c in found.values()))}"
    for split in SPLITS:
        if split not in found:
            text = f"domain '{name}' has no rows for {split}; its rows are from {times}"
            if file.recipe.split.last_share is not None:
                text += "; users have too few rows for such a share: raise it, or split by moments (valid, test)"
            file.raise_for_all_rows(file.fault(("split",), text))
            continue
        counts = found[split]
        for label, positives in counts.positives.items():
            if not positives or positives == counts.known[label]:
                known = "rows" if counts.known[label] == counts.rows else "rows with it"
                what = "positive" if not positives else "negative"
                text = (
                    f"none of the {counts.known[label]:,} {known} of {split} is {what}; check the condition, or move "
                    "'split'"
                )
                file.raise_for_all_rows(file.fault(("domains", name, "labels", label), text))


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def day(micros: int) -> str:
    """The day of a moment in UTC, for messages."""
    return datetime.fromtimestamp(micros / 1e6, timezone.utc).strftime("%Y-%m-%d")


def _example(tables: Tables, file: RecipeFile, name: str, sql: str) -> str:
    """A value that is no label, for a message."""
    source = file.recipe.domains[name].rows
    rows = select(tables, file, "_example", source, ("domains", name), {"value": (sql, ("domains", name, "labels"))})
    found = rows.filter(rows.value.notnull(), rows.value != 0, rows.value != 1).limit(1).value.to_pyarrow().to_pylist()
    return f", for example {found[0]!r}" if found else ""
