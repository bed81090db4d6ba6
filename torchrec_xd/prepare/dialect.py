"""DuckDB's SQL as Spark runs it, so that Spark computes the values that DuckDB does; what it cannot is refused."""

from __future__ import annotations

from collections.abc import Callable

import sqlglot
from sqlglot import exp

_REFUSED = {"hash", "rand", "random", "uuid", "gen_random_uuid", "now", "current_date", "current_timestamp", "today"}
_UNITS = {"second", "minute", "hour", "day", "week", "month", "quarter", "year"}
_WHOLE = {exp.DataType.Type.TINYINT, exp.DataType.Type.SMALLINT, exp.DataType.Type.INT, exp.DataType.Type.BIGINT}
_TO_WHOLE = (
    "IF(TYPEOF({0}) IN ('double', 'float'), {2}(BROUND(CAST({0} AS DOUBLE)) AS {1}), "
    "IF(TYPEOF({0}) LIKE 'decimal%' OR TYPEOF({0}) = 'string', {2}(ROUND({2}({0} AS DECIMAL(38, 9))) AS {1}), "
    "{2}({0} AS {1})))"
)
"""DuckDB rounds, halves of floats to the even neighbour and other halves away from 0; Spark cuts off."""
_SUNDAY_0, _MONDAY_1 = "(DAYOFWEEK({0}) - 1)", "(WEEKDAY({0}) + 1)"
_SAME_PARTS: dict[type[exp.Expression], str] = {
    # By 0 DuckDB divides to infinity or NaN.
    exp.Div: "IF({1} = 0, CAST({0} AS DOUBLE) * DOUBLE('Infinity'), CAST({0} AS DOUBLE) / CAST({1} AS DOUBLE))",
    exp.Ln: "IF({0} = 0, DOUBLE('-Infinity'), LN({0}))",
    exp.BitwiseXor: "(({0}) ^ ({1}))",  # DuckDB's is a function; sqlglot leaves out what holds the operator together
    exp.DayOfWeek: _SUNDAY_0,
    exp.DayOfWeekIso: _MONDAY_1,
    exp.TimeToUnix: "(UNIX_MICROS(CAST({0} AS TIMESTAMP)) / 1000000D)",
}
_UNKNOWN = {"weekday": _SUNDAY_0, "epoch_us": "UNIX_MICROS(CAST({0} AS TIMESTAMP))"}
"""Functions that sqlglot passes on as they are."""


class SparkRefusal(Exception):  # noqa: N818 - a reason, which becomes an error with its line
    """Why Spark does not compute a query as DuckDB does."""


def spark_sql(query: str) -> str:
    """A query in DuckDB's SQL as Spark runs it.

    Raises:
        SparkRefusal: it has a part that Spark computes otherwise or not at all.
        sqlglot.errors.ParseError: it is no query.
    """
    tree = sqlglot.parse_one(query, read="duckdb")
    for node in reversed(list(tree.walk())):  # parts before the whole
        changed = _changed(node)
        if changed is not None:
            new = sqlglot.parse_one(changed, read="spark")
            node.replace(new)
            tree = new if node is tree else tree
    try:
        return tree.sql(dialect="spark", unsupported_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.errors.UnsupportedError as error:
        raise SparkRefusal(f"{error}; use engine: duckdb") from None


def refusal(query: str) -> str | None:
    """Why Spark does not compute a query as DuckDB does; None if it does, and for what is no query."""
    try:
        spark_sql(query)
    except SparkRefusal as reason:
        return str(reason)
    except sqlglot.errors.ParseError:
        return None  # told where it is used
    return None


def _changed(node: exp.Expression) -> str | None:
    """Spark's SQL for a part whose values would be others; None for the rest."""
    if isinstance(node, exp.Func):
        _refuse(node)
    if type(node) in _SAME_PARTS:
        return _SAME_PARTS[type(node)].format(_spark(node.this), _spark(node.args.get("expression")))
    change = next((change for kind, change in _CHANGES.items() if isinstance(node, kind)), None)
    return change(node) if change is not None else None


def _refuse(node: exp.Func) -> None:
    own = node.name if isinstance(node, exp.Anonymous) else node.sql_name()  # type: ignore[no-untyped-call]
    name = str(own).lower()
    if name in _REFUSED:
        raise SparkRefusal(f"{name}() has other values on Spark; compute it outside, or use engine: duckdb")
    if isinstance(node, exp.RegexpReplace) and "g" not in (node.args.get("modifiers") or exp.Literal.string("")).name:
        raise SparkRefusal("regexp_replace() changes the first match, and all on Spark; write regexp_replace(…, 'g')")


def _spark(node: exp.Expression | None) -> str:
    return "" if node is None else node.sql(dialect="spark")


def _log(node: exp.Expression) -> str | None:
    return None if node.args.get("expression") else f"LOG10({_spark(node.this)})"


def _extract(node: exp.Expression) -> str | None:
    """Days of the week; the other parts are the same."""
    days = {"dow": _SUNDAY_0, "dayofweek": _SUNDAY_0, "weekday": _SUNDAY_0, "isodow": _MONDAY_1}
    part = days.get(node.name.lower())
    return part.format(_spark(node.expression)) if part else None


def _boundaries(node: exp.Expression) -> str:
    """DuckDB counts the boundaries of units between two moments, Spark whole units."""
    assert isinstance(node, exp.DateDiff)
    unit = node.unit.name.lower() if node.unit else "day"
    if unit not in _UNITS:
        raise SparkRefusal(f"date_diff by {unit} is not computed on Spark; choose from {', '.join(sorted(_UNITS))}")
    first, last = (f"DATE_TRUNC('{unit.upper()}', {_spark(part)})" for part in (node.expression, node.this))
    return f"TIMESTAMPDIFF({unit.upper()}, {first}, {last})"


def _moment(node: exp.Expression) -> str:
    """Of microseconds or milliseconds a timestamp without zone, of seconds one in UTC."""
    scale = {"6": "MICROS", "3": "MILLIS"}.get(node.args["scale"].name) if node.args.get("scale") else None
    value = _spark(node.this)
    return f"CAST(TIMESTAMP_{scale}({value}) AS TIMESTAMP_NTZ)" if scale else f"TIMESTAMP_SECONDS({value})"


def _without_zone(node: exp.Expression) -> str | None:
    """Spark makes timestamps of texts and parts of timestamps that are in the session's zone, UTC."""
    zoned = isinstance(node, exp.StrToTime) and "%z" in node.args["format"].name.lower()
    return None if zoned else f"CAST({_spark(node)} AS TIMESTAMP_NTZ)"


def _entry(node: exp.Expression) -> str | None:
    """An entry beyond the end of a list is null."""
    (index, *others) = node.expressions
    if others or isinstance(index, exp.Slice) or index.find(exp.Neg):
        raise SparkRefusal("[a:b] and [-1] are not computed on Spark; write substr(), or an index from the beginning")
    return f"GET({_spark(node.this)}, {_spark(index)})" if index.is_int else None


def _whole(node: exp.Expression) -> str | None:
    assert isinstance(node, exp.Cast)
    kind = "TRY_CAST" if isinstance(node, exp.TryCast) else "CAST"
    return _TO_WHOLE.format(_spark(node.this), _spark(node.to), kind) if node.to.this in _WHOLE else None


def _unknown(node: exp.Expression) -> str | None:
    parts = node.expressions
    if node.name.lower() == "try_strptime":
        parsed = exp.StrToTime(this=parts[0].copy(), format=parts[1].copy())
        return f"CAST(TRY_{_spark(parsed)} AS TIMESTAMP_NTZ)"
    known = _UNKNOWN.get(node.name.lower())
    return known.format(_spark(parts[0])) if known else None


_CHANGES: dict[type[exp.Expression], Callable[[exp.Expression], str | None]] = {
    exp.Log: _log,
    exp.Extract: _extract,
    exp.DateDiff: _boundaries,
    exp.UnixToTime: _moment,
    exp.StrToTime: _without_zone,
    exp.TimestampTrunc: _without_zone,
    exp.DateTrunc: _without_zone,
    exp.Bracket: _entry,
    exp.Cast: _whole,
    exp.Anonymous: _unknown,
}
