"""DuckDB's SQL as Spark runs it, so that Spark computes the values that DuckDB does; what it cannot is refused."""

from __future__ import annotations

import sqlglot
from sqlglot import exp

_REFUSED = {"hash", "rand", "random", "uuid", "gen_random_uuid", "now", "current_date", "current_timestamp", "today"}
_UNITS = {"second", "minute", "hour", "day", "week", "month", "quarter", "year"}
_WHOLE = {exp.DataType.Type.TINYINT, exp.DataType.Type.SMALLINT, exp.DataType.Type.INT, exp.DataType.Type.BIGINT}
_RATIO = "IF({1} = 0, CAST({0} AS DOUBLE) * DOUBLE('Infinity'), CAST({0} AS DOUBLE) / CAST({1} AS DOUBLE))"
"""By 0 DuckDB divides to infinity or NaN."""
_TO_WHOLE = (
    "IF(TYPEOF({0}) IN ('double', 'float'), {2}(BROUND(CAST({0} AS DOUBLE)) AS {1}), "
    "IF(TYPEOF({0}) LIKE 'decimal%' OR TYPEOF({0}) = 'string', {2}(ROUND({2}({0} AS DECIMAL(38, 9))) AS {1}), "
    "{2}({0} AS {1})))"
)
"""DuckDB rounds, halves of floats to the even neighbour and other halves away from 0; Spark cuts off."""


class NotOnSpark(Exception):
    """A query, or a part of it, that Spark does not compute as DuckDB does."""


def spark_sql(query: str) -> str:
    """A query in DuckDB's SQL as Spark runs it.

    Raises:
        NotOnSpark: it has a part that Spark computes otherwise or not at all.
        sqlglot.errors.ParseError: it is no query.
    """
    tree = sqlglot.parse_one(query, read="duckdb")
    for node in reversed(list(tree.walk())):
        changed = _changed(node)
        if changed is not None:
            new = sqlglot.parse_one(changed, read="spark")
            tree = new if node is tree else tree
            node.replace(new)
    try:
        return tree.sql(dialect="spark", unsupported_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.errors.UnsupportedError as error:
        raise NotOnSpark(f"{error}; use engine: duckdb") from None


def _changed(node: exp.Expression) -> str | None:  # noqa: C901, PLR0911 - a table of cases
    """Spark's SQL for a part whose values would be others; None for the rest."""
    parts = [part.sql(dialect="spark") for part in (node.args.get("this"), node.args.get("expression")) if _is_part(part)]
    if isinstance(node, exp.Func):
        name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
        if name in _REFUSED:
            raise NotOnSpark(f"{name}() has other values on Spark; compute it outside, or use engine: duckdb")
        if name in ("weekday", "try_strptime", "epoch_us") and isinstance(node, exp.Anonymous):
            parts = [each.sql(dialect="spark") for each in node.expressions]
            return _anonymous(name, parts, node)
    if isinstance(node, exp.Div):
        return _RATIO.format(*parts)
    if isinstance(node, exp.Log) and len(parts) == 1:
        return f"LOG10({parts[0]})"
    if isinstance(node, exp.Ln):
        return f"IF({parts[0]} = 0, DOUBLE('-Infinity'), LN({parts[0]}))"
    if isinstance(node, exp.RegexpReplace) and "g" not in (node.args["modifiers"] or exp.Literal.string("")).name:
        raise NotOnSpark("regexp_replace() changes the first match, and all on Spark; write regexp_replace(…, 'g')")
    if isinstance(node, exp.TimestampTrunc | exp.DateTrunc):
        return f"CAST({node.sql(dialect='spark')} AS TIMESTAMP_NTZ)"
    if isinstance(node, exp.DayOfWeek):
        return f"(DAYOFWEEK({parts[0]}) - 1)"
    if isinstance(node, exp.DayOfWeekIso):
        return f"(WEEKDAY({parts[0]}) + 1)"
    if isinstance(node, exp.Extract) and node.name.lower() in ("dow", "dayofweek", "weekday", "isodow"):
        return f"(WEEKDAY({parts[1]}) + 1)" if node.name.lower() == "isodow" else f"(DAYOFWEEK({parts[1]}) - 1)"
    if isinstance(node, exp.DateDiff):
        return _boundaries(node, parts)
    if isinstance(node, exp.TimeToUnix):
        return f"(UNIX_MICROS(CAST({parts[0]} AS TIMESTAMP)) / 1000000D)"
    if isinstance(node, exp.UnixToTime):
        scale = {"6": "MICROS", "3": "MILLIS"}.get(node.args["scale"].name) if node.args.get("scale") else None
        return f"CAST(TIMESTAMP_{scale}({parts[0]}) AS TIMESTAMP_NTZ)" if scale else f"TIMESTAMP_SECONDS({parts[0]})"
    if isinstance(node, exp.StrToTime) and "%z" not in node.args["format"].name.lower():
        return f"CAST({node.sql(dialect='spark')} AS TIMESTAMP_NTZ)"
    if isinstance(node, exp.Slice) or (isinstance(node, exp.Bracket) and node.find(exp.Neg)):
        raise NotOnSpark("[a:b] and [-1] are not computed on Spark; write substr(), or an index from the beginning")
    if isinstance(node, exp.Bracket) and len(node.expressions) == 1 and node.expressions[0].is_int:
        return f"GET({parts[0]}, {node.expressions[0].sql(dialect='spark')})"
    if isinstance(node, exp.Cast) and node.to.this in _WHOLE:
        kind = "TRY_CAST" if isinstance(node, exp.TryCast) else "CAST"
        return _TO_WHOLE.format(parts[0], node.to.sql(dialect="spark"), kind)
    return None


def _is_part(part: object) -> bool:
    return isinstance(part, exp.Expression)


def _anonymous(name: str, parts: list[str], node: exp.Expression) -> str:
    """Functions that sqlglot does not know."""
    if name == "weekday":
        return f"(DAYOFWEEK({parts[0]}) - 1)"
    if name == "epoch_us":
        return f"UNIX_MICROS(CAST({parts[0]} AS TIMESTAMP))"
    parsed = exp.StrToTime(this=node.expressions[0].copy(), format=node.expressions[1].copy())
    return f"CAST(TRY_{parsed.sql(dialect='spark')} AS TIMESTAMP_NTZ)"


def _boundaries(node: exp.DateDiff, parts: list[str]) -> str:
    """DuckDB counts the boundaries of units between two moments, Spark whole units."""
    unit = node.unit.name.lower() if node.unit else "day"
    if unit not in _UNITS:
        raise NotOnSpark(f"date_diff by {unit} is not computed on Spark; choose from {', '.join(sorted(_UNITS))}")
    last, first = (f"DATE_TRUNC('{unit.upper()}', {part})" for part in parts)
    return f"TIMESTAMPDIFF({unit.upper()}, {first}, {last})"
