"""What is wrong with a recipe, before anything is read, and with its rows, before anything is learnt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ibis.expr.types import Table

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.learning import values_of, way_of
from torchrec_xd.prepare.recipe import RecipeFeature
from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.rows import SPLITS, features_of, is_read, select, split_moment
from torchrec_xd.prepare.tables import Tables
from torchrec_xd.settings import MAX_FP32

WAYS = ("vocabulary", "buckets", "quantiles", "log_buckets", "hash", "as_is")
"""How a value becomes an id; a feature names one at most."""
DENSE_KEYS = ("log1p", "standard", "clip")
RESERVED = ("user", "time", "weight", "cold", "activity")
"""Columns that are written for every row."""


def check_recipe(file: RecipeFile) -> None:
    """Refuse what contradicts itself.

    Raises:
        UserError: a name that is not there, two ways for one feature, or a key that its kind has no use for.
    """
    recipe = file.recipe
    written: dict[str, str] = dict.fromkeys(RESERVED, "a column of every data set")
    for name, domain in recipe.domains.items():
        for label in domain.labels:
            _refuse_twice(file, written, label, "a label", ("domains", name, "labels", label))
        for label in domain.nullable:
            if label not in domain.labels:
                raise file.fault(
                    ("domains", name, "nullable"), f"'{label}' is no label; labels: {_list(domain.labels)}"
                )
        if recipe.split.column is None and domain.time is None:
            raise file.fault(("domains", name), "rows are split by time: name the column of it, 'time'")
    for feature in recipe.features:
        _refuse_twice(file, written, feature.column, "a feature", ("features",))
        for name in feature.domains or ():
            if name not in recipe.domains:
                raise file.feature_fault(
                    feature.column, f"'{name}' is no domain; domains are: {_list(recipe.domains)}", "domains"
                )
        _check_feature(file, feature)
    if recipe.activity is not None:
        _check_total_name(file, recipe.activity.events, ("activity", "events"))
    _check_split(file)


def _refuse_twice(file: RecipeFile, written: dict[str, str], name: str, what: str, key: tuple[str, ...]) -> None:
    if written.get(name, what) != what or (what == "a feature" and name in written):
        raise file.fault(key, f"'{name}' is {what} and {written[name]} too; name one of them otherwise")
    written[name] = what


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _check_total_name(file: RecipeFile, name: str, key: tuple[str | int, ...]) -> None:
    if name not in file.recipe.events:
        raise file.fault(key, f"'{name}' is not under 'events'; there are: {_list(file.recipe.events)}")


def _check_feature(file: RecipeFile, feature: RecipeFeature) -> None:
    def fault(key: str | None, text: str) -> UserError:
        return file.feature_fault(feature.column, text, key)

    sources = [key for key in ("value", "history", "total", "calendar") if getattr(feature, key) is not None]
    if len(sources) > 1:
        raise fault(sources[1], f"a feature has one source, and this one names {' and '.join(sources)}")
    ways = [way for way in WAYS if getattr(feature, way) is not None]
    if len(ways) > 1:
        raise fault(ways[1], f"a value becomes an id in one way, and this feature names {' and '.join(ways)}")
    for made in (feature.history, feature.total):
        if made is not None and made.events not in file.recipe.events:
            raise fault(None, f"'{made.events}' is not under 'events'; there are: {_list(file.recipe.events)}")
    dense = [key for key in DENSE_KEYS if getattr(feature, key)]
    if feature.kind != "dense" and dense:
        raise fault(dense[0], f"belongs to dense features; this one is of kind {feature.kind}")
    if feature.missing != "zero" and feature.kind != "dense":
        raise fault("missing", f"belongs to dense features; this one is of kind {feature.kind}")
    if feature.indicator and feature.kind not in ("dense", "vector"):
        raise fault(
            "indicator", f"belongs to dense features and vectors; null of kind {feature.kind} has a row already"
        )
    if feature.kind in ("dense", "vector") and ways:
        raise fault(ways[0], f"makes an id of a value; a feature of kind {feature.kind} has none")
    if (feature.kind in ("sequence", "vector")) != (feature.length is not None):
        raise fault("length", "belongs to every sequence and every vector, and to no other kind")
    if feature.history is not None and feature.kind != "sequence":
        raise fault("history", f"makes a sequence; this feature is of kind {feature.kind}")
    if feature.total is not None and feature.kind not in ("id", "dense"):
        raise fault(
            "total", f"is a number: kind dense, or kind id with buckets; this feature is of kind {feature.kind}"
        )
    if feature.total is not None and feature.kind == "id" and ways not in (["buckets"], ["quantiles"], ["log_buckets"]):
        raise fault(None, "a total becomes an id by 'buckets', 'quantiles' or 'log_buckets': name one of them")
    if feature.calendar is not None and (feature.kind != "id" or ways):
        raise fault("calendar", "is of kind id and needs nothing that makes an id of it")
    if feature.separator is not None and feature.kind not in ("bag", "sequence"):
        raise fault("separator", f"belongs to bags and sequences; this feature is of kind {feature.kind}")
    if feature.kind in ("bag", "sequence") and ways and ways[0] in ("buckets", "quantiles", "log_buckets"):
        raise fault(ways[0], f"cuts one number into buckets; a {feature.kind} is a list: use vocabulary, hash or as_is")
    if feature.buckets is not None and list(feature.buckets) != sorted(set(feature.buckets)):
        raise fault("buckets", f"edges ascend; these are {list(feature.buckets)}")
    if feature.clip is not None and feature.clip[0] >= feature.clip[1]:
        raise fault("clip", f"is the least and the greatest value; these are {list(feature.clip)}")
    for name, domain in file.recipe.domains.items():
        past = feature.history or feature.total or feature.calendar
        if past is not None and domain.time is None and feature in features_of(file.recipe, name):
            raise fault(None, f"needs the time of a row, and domain '{name}' names no column for it: 'time'")


def _check_split(file: RecipeFile) -> None:
    split = file.recipe.split
    by_time = [name for name in ("valid", "test") if getattr(split, name) is not None]
    ways = [*by_time[:1], *(name for name in ("last_share", "column") if getattr(split, name) is not None)]
    if len(ways) != 1:
        raise file.fault(
            ("split",), "rows are split in one way: {valid: DATE, test: DATE}, {last_share: {…}}, or {column: NAME}"
        )
    if by_time and len(by_time) < 2:
        raise file.fault(("split",), "valid and test both need their first moment")
    if by_time and split_moment(file, "valid") >= split_moment(file, "test"):
        raise file.fault(("split", "test"), f"begins before validation ({split.test}, {split.valid})")
    if split.last_share is not None and not 0 < sum(split.last_share.values()) < 1:
        raise file.fault(("split", "last_share"), f"leaves nothing for training or nothing else: {split.last_share}")


@dataclass(frozen=True)
class RowCounts:
    """Rows of one domain and split."""

    rows: int
    positives: dict[str, int]
    """By label."""
    first: int
    """Earliest time, microseconds since 1970."""
    last: int
    """Latest time."""


def check_types(tables: Tables, file: RecipeFile, name: str, rows: Table) -> None:
    """Refuse values whose type their feature cannot use, before they are read.

    Raises:
        UserError: names feature, type, rule and remedy.
    """
    for feature in features_of(file.recipe, name):
        if not is_read(feature):
            continue
        kind = values_of(tables, rows, feature).type()
        inner = kind.value_type if kind.is_array() else kind
        lists = feature.kind in ("bag", "sequence", "vector")
        key = inner.is_integer() or inner.is_string() or inner.is_boolean()
        if lists != kind.is_array():
            hint = "; text with ids in it needs a 'separator'" if kind.is_string() and lists else ""
            raise file.feature_fault(
                feature.column,
                f"a {feature.kind} is {'a list' if lists else 'one value'} per row; this is {kind}{hint}",
            )
        numbers = feature.kind in ("dense", "vector") or way_of(feature) in ("buckets", "quantiles", "log_buckets")
        if numbers and not (inner.is_numeric() or inner.is_boolean()):
            raise file.feature_fault(feature.column, f"needs numbers; this is {kind}: cast it in 'value'")
        if not numbers and not key:
            raise file.feature_fault(
                feature.column, f"ids are integers or texts; this is {kind}: cast it in 'value', or use buckets"
            )


def check_rows(
    tables: Tables, file: RecipeFile, name: str, rows: Table, *, labels: bool = True
) -> dict[str, RowCounts]:
    """Count the rows of a domain, and refuse those that mean nothing.

    Raises:
        UserError: rows without user or time, values that are no label, vectors of another length, rows that are in
            no split, and splits without rows or positives.
    """
    domain, key = file.recipe.domains[name], ("domains", name)
    own = domain.labels if labels else {}
    faults: dict[str, Any] = {"_no_user": rows._user.isnull(), "_no_time": rows._time.isnull()}
    faults["_no_split"] = rows._split == 3
    weight = rows._weight.cast("float64")
    faults["_bad_weight"] = ~(((weight > 0) & (weight < MAX_FP32)).fill_null(False))
    for label in own:
        faults[f"_bad_{label}"] = rows[f"l_{label}"] == 2
        faults[f"_null_{label}"] = rows[f"l_{label}"].isnull()
    for feature in features_of(file.recipe, name):
        column = f"v_{feature.column}"
        if feature.kind == "vector":
            faults[f"_length_{feature.column}"] = rows[column].length() != feature.length
        if feature.as_is is not None and feature.kind == "id" and is_read(feature):
            faults[f"_outside_{feature.column}"] = (rows[column] < 0) | (rows[column] >= feature.as_is)
    measures = {fault: where.fill_null(False).cast("int64").sum() for fault, where in faults.items()}
    measures |= {f"_positive_{label}": (rows[f"l_{label}"] == 1).cast("int64").sum() for label in own}
    counted = rows.group_by("_split").agg(
        _rows=rows.count(), _first=rows._time.min(), _last=rows._time.max(), **measures
    )
    by_split = {row["_split"]: row for row in counted.to_pyarrow().to_pylist()}
    total = {fault: sum(row[fault] or 0 for row in by_split.values()) for fault in faults}
    if not by_split:
        raise file.fault((*key, "rows"), f"'{domain.rows}' has no rows")
    if total["_no_user"]:
        raise file.fault((*key, "user"), f"{total['_no_user']:,} rows have no user; leave them out in a view")
    if total["_no_time"]:
        raise file.fault((*key, "time"), f"{total['_no_time']:,} rows have no time; leave them out in a view")
    if total["_no_split"]:
        raise file.fault(("split", "column"), f"{total['_no_split']:,} rows of '{name}' are not train, valid or test")
    if total["_bad_weight"]:
        raise file.fault((*key, "weight"), f"{total['_bad_weight']:,} rows have no weight above 0")
    for label, sql in own.items():
        place = (*key, "labels", label)
        if total[f"_bad_{label}"]:
            raise file.fault(
                place,
                f"{total[f'_bad_{label}']:,} rows have another value than 0 and 1{_example(tables, file, name, sql)}; "
                f"write a condition, for example {sql} > 0",
            )
        if total[f"_null_{label}"] and label not in domain.nullable:
            raise file.fault(
                place,
                f"{total[f'_null_{label}']:,} rows have no value; if it is not known there, name it under 'nullable', "
                f"else write coalesce({sql}, 0)",
            )
    for feature in features_of(file.recipe, name):
        if total.get(f"_length_{feature.column}"):
            raise file.feature_fault(
                feature.column,
                f"{total[f'_length_{feature.column}']:,} rows of '{name}' hold a list of another length than "
                f"{feature.length}; a vector has one length in all rows, or is null",
                "length",
            )
        if total.get(f"_outside_{feature.column}"):
            raise file.feature_fault(
                feature.column,
                f"{total[f'_outside_{feature.column}']:,} values lie outside [0, {feature.as_is})",
                "as_is",
            )
    found = {
        split: RowCounts(
            by_split[i]["_rows"],
            {label: by_split[i][f"_positive_{label}"] for label in own},
            by_split[i]["_first"],
            by_split[i]["_last"],
        )
        for i, split in enumerate(SPLITS)
        if i in by_split
    }
    return found


def check_splits(file: RecipeFile, name: str, found: dict[str, RowCounts]) -> None:
    """Refuse a domain that cannot be trained on or evaluated.

    Raises:
        UserError: a split has no rows, or rows of one label value only.
    """
    for split in SPLITS:
        if split not in found:
            times = f"; its rows are from {_day(min(c.first for c in found.values()))} to "
            times += _day(max(c.last for c in found.values()))
            raise file.fault(("split",), f"domain '{name}' has no rows for {split}{times}")
        for label, positives in found[split].positives.items():
            if not positives or positives == found[split].rows:
                what = "no positive" if not positives else "no negative"
                raise file.fault(
                    ("domains", name, "labels", label),
                    f"the {found[split].rows:,} rows of {split} have {what} label; check the condition, or move 'split'",
                )


def _day(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, timezone.utc).strftime("%Y-%m-%d")


def _example(tables: Tables, file: RecipeFile, name: str, sql: str) -> str:
    """A value that is no label, for a message."""
    source = file.recipe.domains[name].rows
    rows = select(tables, file, "_example", source, ("domains", name), {"value": (sql, ("domains", name, "labels"))})
    found = rows.filter(rows.value.notnull(), rows.value != 0, rows.value != 1).limit(1).value.to_pyarrow().to_pylist()
    return f", for example {found[0]!r}" if found else ""
