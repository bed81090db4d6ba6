"""SQL on samples, by one DuckDB in this process; names as SQL writes them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa


@cache
def _engine() -> Any:
    engine = duckdb.connect()
    engine.execute("SET enable_progress_bar = false")
    return engine


def engine() -> Any:
    """A cursor of an empty in-memory database."""
    return _engine().cursor()


def computed(table: pa.Table, *values: str) -> pa.Table:
    """`SELECT values FROM table AS r`."""
    with engine() as read:
        return read.from_arrow(table).set_alias("r").project(", ".join(values)).to_arrow_table()


def aggregated(table: pa.Table, *values: str) -> tuple[Any, ...]:
    """The one row of `SELECT values FROM table`, of aggregates."""
    with engine() as read:
        row: tuple[Any, ...] = read.from_arrow(table).aggregate(", ".join(values)).fetchall()[0]
        return row


def sql_name(name: str) -> str:
    """A column or table in SQL: quoted, but for plain names that are no words of SQL."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _reserved():
        return name
    return '"' + name.replace('"', '""') + '"'


def moment(value: str, form: str) -> str:
    """A text as a timestamp. ISO 8601 is cast: letters in a format, as its T and Z, mean something else to Spark."""
    return f"CAST({value} AS TIMESTAMP)" if form.startswith("%Y-%m-%d") else f"strptime({value}, '{form}')"


@cache
def _reserved() -> frozenset[str]:
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    with engine() as read:
        return frozenset(name for (name,) in read.execute(query).fetchall())
