"""How the columns of the domains become features: guesses with reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_xd.prepare.init.columns import Column
from torchrec_xd.prepare.init.roles import plain, safe
from torchrec_xd.prepare.init.sql import sql_name

FEW = 50
"""Numbers with up to so many values are ids."""
MAX_VECTOR = 4096
BIG_VOCABULARY = 1_000_000
_CONTEXT = re.compile(
    r"(device|os|osversion|browser|useragent|platform|channel|page|pagetype|position|pos|slot|rank|bannerpos|network|"
    r"connection|conntype|appversion|referr?er|source|medium|tab|placement|surface|hour|weekday|dayofweek|daytype)"
)
_OF_USER = re.compile(
    r"^(user|usr|member|customer|visitor)[\W_]?.+|^(age|gender|sex|income|occupation|zip(code)?)$", re.IGNORECASE
)
_KEYED = re.compile(r"(id|ids|key|code|hash|sk|cat|category|type|class|group|level|segment|flag|index|bin|bucket)$")


@dataclass
class Draft:
    """A feature to be, of one or several domains."""

    content: dict[str, Any]
    """Of the recipe's `features`, without group and domains."""
    reason: str
    family: str
    """What has to be alike for columns of one name to be one feature: integer, text, vector …"""
    of_user: bool = False
    context: bool = False
    domains: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LeftOut:
    """A column that is no feature, and why."""

    column: str
    reason: str


def draft(column: Column, of_user: bool, known: dict[str, Any] | None = None) -> Draft | LeftOut:
    """The feature that a column makes, or the reason why it makes none.

    Args:
        column: neither user, time nor label.
        of_user: its value is the same in all rows of a user, in the sample.
        known: what the feature is, if that is known.
    """
    made = _encoding(column) if known is None else (dict(known), "as the data set defines it", "known")
    if isinstance(made, LeftOut):
        return made
    content, reason, family = made
    name = safe(column.name)
    if name != column.name and "value" not in content:
        content = {"value": sql_name(column.name), **content}
    value = content.pop("value", None)
    if value is None and sql_name(column.name) != column.name:
        value = sql_name(column.name)
    full = {"column": name, **({} if value is None else {"value": value}), **content}
    named = bool(_OF_USER.match(column.name))
    if of_user or named:
        reason += "; constant per user in the sample" if of_user else "; named like something of the user"
    context = bool(re.fullmatch(_CONTEXT, plain(column.name)))
    return Draft(full, reason, family, of_user=(of_user or named) and not context, context=context)


def _encoding(column: Column) -> tuple[dict[str, Any], str, str] | LeftOut:  # noqa: PLR0911
    name = column.name
    if column.look == "empty":
        return LeftOut(name, "has no values in the sample")
    if column.look == "other":
        return LeftOut(name, f"is of a type that no feature has ({column.values.type})")
    if column.look == "moment":
        return LeftOut(name, "is a second date; a view can make a number of it: date_diff('day', …)")
    if column.constant:
        return LeftOut(name, f"has one value in the sample, {_shown(column.values[0].as_py())}")
    if column.look == "vector":
        return _vector(column)
    if column.look == "list":
        return _list(column)
    if column.look == "text":
        return _text(column)
    if column.look == "boolean":
        return {"kind": "id"}, "true and false", "boolean"
    return _number(column)


def _vector(column: Column) -> tuple[dict[str, Any], str, str] | LeftOut:
    if column.length > MAX_VECTOR:
        return LeftOut(column.name, f"has {column.length:,} numbers in each row; up to {MAX_VECTOR:,} make a vector")
    return {"kind": "vector", "length": column.length}, f"lists of {column.length} numbers each", f"v{column.length}"


def _list(column: Column) -> tuple[dict[str, Any], str, str] | LeftOut:
    if column.of_floats:
        return LeftOut(column.name, "has lists of numbers of changing length, which are neither ids nor a vector")
    if len(column.flat) == 0:
        return LeftOut(column.name, "has empty lists only in the sample")
    of = "texts" if pa.types.is_string(column.flat.type) or pa.types.is_large_string(column.flat.type) else "integers"
    reason = f"lists of {of}, up to {column.length} of {len(column.flat.unique()):,} in the sample"
    return {"kind": "bag", **_vocabulary(len(column.flat.unique()))}, reason, f"bag of {of}"


def _text(column: Column) -> tuple[dict[str, Any], str, str] | LeftOut:
    share = column.distinct / max(len(column.values), 1)
    if str(column.values[0]).startswith(("[", "{")):
        return LeftOut(column.name, "looks like JSON in a text; a view can read it: from_json(…)")
    if column.separator is not None:
        parts = pc.list_flatten(pc.split_pattern(column.values, column.separator))
        content = {"kind": "bag", "separator": column.separator, **_vocabulary(len(parts.unique()))}
        return content, f"texts of several values, with {column.separator!r} between them", "bag of texts"
    keyed = bool(_KEYED.search(plain(column.name)))
    if column.words > 4 and share > 0.2:
        return LeftOut(column.name, f"looks like free text, {column.words:.0f} words on average")
    if share > 0.9 and column.distinct >= 20 and not keyed:
        return LeftOut(column.name, "has a value of its own in almost every row, from which nothing can be learnt")
    if column.unique and column.distinct >= 20:
        return LeftOut(column.name, "is different in every row of the sample, like the row's own key")
    return {"kind": "id", **_vocabulary(column.distinct)}, f"texts, {_count(column)}", "text"


def _number(column: Column) -> tuple[dict[str, Any], str, str] | LeftOut:
    integer = column.look == "integer"
    keyed = bool(_KEYED.search(plain(column.name)))
    if integer and column.unique and column.distinct >= 20 and (keyed or _is_counter(column)):
        return LeftOut(column.name, "is different in every row of the sample, like the row's own key")
    if integer and (keyed or column.distinct <= FEW):
        value = {"value": key_value(column)} if column.of_floats else {}
        return {"kind": "id", **value, **_vocabulary(column.distinct)}, f"integers, {_count(column)}", "number"
    content: dict[str, Any] = {"kind": "dense"}
    if column.has_nan:
        quoted = sql_name(column.name)
        content["value"] = f"CASE WHEN isnan({quoted}) THEN NULL ELSE {quoted} END"
    low, high = column.span
    reason = f"numbers from {low:.6g} to {high:.6g}"
    if column.skewed:
        content["log1p"] = True
        reason += ", few of them large"
    content["standard"] = True
    if column.nulls:
        content |= {"missing": "mean", "indicator": True}
        reason += f"; {column.nulls / column.rows:.1%} are missing"
    return content, reason, "number"


def _is_counter(column: Column) -> bool:
    """Whether integers grow by the row, as a row number does."""
    numbers = np.asarray(column.values)
    return bool(len(numbers) > 1 and (np.diff(numbers) > 0).all())


def _vocabulary(distinct: int) -> dict[str, Any]:
    """Of many values; those seen once have no row of their own, as nothing can be learnt of them."""
    return {"vocabulary": {"min_count": 2, "max_rows": BIG_VOCABULARY}} if distinct > 1000 else {}


def key_vocabulary(column: Column) -> dict[str, Any]:
    """The same for users and items."""
    return _vocabulary(column.distinct)


def key_value(column: Column) -> str:
    """Its SQL: an integer, also where it is kept as floating point."""
    name = sql_name(column.name)
    return f"CAST({name} AS BIGINT)" if column.of_floats else name


def _count(column: Column) -> str:
    return f"{column.distinct:,} different in the sample"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def constant_per_user(table: pa.Table, user: Column, columns: dict[str, Column]) -> set[str]:
    """The columns that have one value for each user, of at least 10 users with several rows.

    Args:
        table: the sample.
        user: of the table.
        columns: of the table.
    """
    names = [
        name
        for name, column in columns.items()
        if column.look not in ("list", "vector", "other", "empty") and column.distinct > 1 and name != user.name
    ]
    if user.distinct >= table.num_rows or not names:
        return set()
    values = pa.table({"u": table[user.name], **{f"v{i}": table[name] for i, name in enumerate(names)}})
    counts = [("u", "count"), *((f"v{i}", "count_distinct") for i in range(len(names)))]
    found = values.group_by("u").aggregate(counts)
    several = found.filter(pc.greater(found["u_count"], 1))
    if several.num_rows < 10:
        return set()
    return {name for i, name in enumerate(names) if pc.max(several[f"v{i}_count_distinct"]).as_py() <= 1}
