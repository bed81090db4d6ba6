"""Tables of an engine: named by a query, read from files, written to files. Queries are in DuckDB's SQL."""

from __future__ import annotations

import glob
import inspect
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from ibis import selectors as s
from ibis.expr.types import IntegerValue, StringValue, Table, TimestampValue, Value

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.dialect import SparkRefusal, spark_sql
from torchrec_xd.prepare.partitions import NO_PARTITIONS, Partitions

ROW_GROUP_ROWS = 65_536


class Tables:
    """What a recipe needs of DuckDB or Spark.

    Args:
        connection: an Ibis backend.
        in_order: whether DuckDB keeps rows in the order of the input where no query sorts them, on fewer threads.
    """

    def __init__(self, connection: Any, *, in_order: bool = True) -> None:
        self.connection = connection
        self._in_order = in_order
        self.spark: Any = connection._session if connection.name == "pyspark" else None
        """Spark's session; None for DuckDB."""
        self.faults: tuple[type[Exception], ...] = (
            (duckdb.Error,) if self.spark is None else (*_spark_errors(), SparkRefusal)
        )
        """What the engine raises."""
        if self.spark is None:
            connection.raw_sql(f"SET preserve_insertion_order = {in_order}")

    def view(self, name: str, query: str) -> Table:
        """Name a query in DuckDB's SQL over files and other views."""
        if self.spark is not None:
            self.spark.sql(spark_sql(query)).createOrReplaceTempView(name)
        else:
            self.connection.raw_sql(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS {query}")
        return self.connection.table(name)

    def read(
        self,
        name: str,
        kind: str,
        paths: Sequence[str],
        columns: Mapping[str, str],
        options: Mapping[str, Any],
        folders: Partitions = NO_PARTITIONS,
    ) -> None:
        """Name files of one format.

        Args:
            name: of the table.
            kind: `parquet`, `csv` or `json`.
            paths: the files.
            columns: of CSV and JSON files, to their DuckDB types.
            options: of DuckDB's CSV reader.
            folders: folders that are columns.
        """
        if self.spark is not None:
            reader = self.spark.read.options(**_spark_options(kind, options))
            if folders.names:
                reader = reader.option("basePath", folders.base)
            if columns:
                reader = reader.schema(_spark_columns(columns))
            rows = reader.format(kind).load(list(paths))
            if kind == "parquet":
                rows = rows.withColumns(_spark_microseconds(paths[0], dict(rows.dtypes)))
            rows.createOrReplaceTempView(name)
            return
        # By itself DuckDB would read columns of folders in the place of those of the files.
        given = {**options, **({"columns": dict(columns)} if columns else {}), "hive_partitioning": bool(folders.names)}
        given.pop("names", None)
        arguments = "".join(f", {key} = {literal(value)}" for key, value in given.items())
        columns_read = f"* {_microseconds(paths[0])}" if kind == "parquet" else "*"
        self.view(name, f"SELECT {columns_read} FROM read_{kind}({literal(list(paths))}{arguments})")

    def parquet(self, place: Path) -> Table:
        """The rows of a Parquet file, or of all below a folder, whatever the folders on the way are called."""
        if self.spark is not None:
            return self.connection.read_parquet(str(place)).drop(s.startswith("_bucket"))
        files = str(place) if place.suffix == ".parquet" else f"{glob.escape(str(place))}/**/*.parquet"
        return self.connection.read_parquet(files, hive_partitioning=False)

    def write(self, table: Table, folder: Path, *, by: Sequence[str] = (), numbered: int = 0) -> None:
        """Write rows as Parquet files, in folders by the values of columns; no rows, no files.

        Args:
            table: what is computed.
            folder: a new folder.
            by: columns whose values name folders.
            numbered: number of buckets; adds a column `_row` of unique integers, which modulo it are `_bucket`; they
                ascend where rows are kept in order.
        """
        query = self.connection.compile(table)
        if numbered:
            query = f"SELECT {self._number()} * {numbered} + _bucket AS _row, * FROM ({query})"
        if self.spark is not None:
            self.spark.sql(query).write.partitionBy(*by).parquet(str(folder))
        else:
            folder.mkdir(parents=True)
            self._copy(query, folder if by else folder / "part.parquet", by)

    def _number(self) -> str:
        if self.spark is not None:
            return "monotonically_increasing_id()"
        if self._in_order:
            return "row_number() OVER ()"
        self.connection.raw_sql("CREATE OR REPLACE TEMP SEQUENCE _rows")
        return "nextval('_rows')"

    def _copy(self, query: str, path: Path, by: Sequence[str] = ()) -> None:
        partition = f", PARTITION_BY ({', '.join(map(quoted, by))})" if by else ""
        self.connection.raw_sql(f"COPY ({query}) TO {text(str(path))} (FORMAT parquet, COMPRESSION lz4{partition})")

    def write_splits(self, table: Table, folder: Path, buckets: int, splits: Sequence[str]) -> None:
        """Write rows as `folder/SPLIT/*.parquet`, by Spark's executors.

        Args:
            table: with `_split` and `_bucket`, and `_order` and `_tie`, which order the rows of a bucket.
            folder: a new folder.
            buckets: how many files a split has.
            splits: names by number.
        """
        frame = self.spark.sql(self.connection.compile(table)).repartition(buckets, "_bucket")
        scratch = folder.parent / f".{folder.name}"
        # What folders are named by comes first: else Spark sorts by it alone, and the order within is lost.
        frame = frame.sortWithinPartitions("_split", "_bucket", "_order", "_tie").drop("_bucket", "_order", "_tie")
        frame.write.option("compression", "zstd").partitionBy("_split").parquet(str(scratch))
        folder.mkdir(parents=True)
        for number, split in enumerate(splits):
            if (scratch / f"_split={number}").is_dir():
                (scratch / f"_split={number}").rename(folder / split)
        shutil.rmtree(scratch)

    def arrow(self, table: Table) -> pa.Table:
        """Rows in this process."""
        if self.spark is None:
            return table.to_pyarrow()
        # Ibis would go by way of pandas.
        found = self.spark.sql(self.connection.compile(table)).toArrow()
        return found.cast(table.schema().to_pyarrow())

    def temporary(self, name: str, table: Table) -> Table:
        """A table's rows, computed once under a name that may be used again; Spark computes them when needed."""
        if self.spark is not None:
            return self.named(name, table)
        self.connection.raw_sql(f"CREATE OR REPLACE TEMP TABLE {quoted(name)} AS {self.connection.compile(table)}")
        return self.connection.table(name)

    def named(self, name: str, table: Table) -> Table:
        """The same rows; to Spark a name stands for them, lest queries in queries get too deep."""
        if self.spark is None:
            return table
        self.spark.sql(self.connection.compile(table)).createOrReplaceTempView(name)
        return self.connection.table(name)

    def write_part(self, table: Table, path: Path) -> None:
        """Write rows in their order as one file that training reads; DuckDB."""
        query = self.connection.compile(table)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
        self.connection.raw_sql(f"COPY ({query}) TO {text(str(path))} ({options})")

    def micros(self, column: Value) -> IntegerValue:
        """Microseconds since 1970 of a timestamp."""
        if self.spark is not None:
            return _unix_micros(column.cast("timestamp('UTC')"))
        return _epoch_us(column.cast("timestamp"))

    def split(self, value: StringValue, separator: str) -> Value:
        """The parts of a text, empty ones left out."""
        parts = value.split(re.escape(separator) if self.spark is not None else separator)  # Spark takes a pattern
        return parts.filter(lambda each: each != "")

    def of_zone(self, moment: Value, zone: str) -> Value:
        """The instant of a timestamp that was written by the clocks of a zone; the later one of an hour shown twice."""
        if self.spark is None:
            return _of_zone(zone, moment)
        shown, day = moment.cast("timestamp('UTC')"), ibis.interval(days=1)
        later = _to_utc(shown + day, zone) - day  # by the clocks of the next day; Spark alone takes the earlier one
        return (_from_utc(later, zone) == shown).ifelse(later, _to_utc(shown, zone))

    def clock(self, micros: IntegerValue, zone: str) -> TimestampValue:
        """The timestamp that clocks of a zone show, microseconds after 1970 in UTC."""
        if self.spark is not None:
            moment = _timestamp_micros(micros)
            return moment if zone == "UTC" else _from_utc(moment, zone)
        moment = _make_timestamp(micros)
        return moment if zone == "UTC" else _in_zone(zone, moment.cast("timestamp('UTC')"))

    def number(self, value: Value) -> IntegerValue:
        """Integers in [0, 2**60) from integers or texts, alike on both engines; null becomes 0."""
        if not value.type().is_string():
            return (value.cast("int64") & (2**60 - 1)).fill_null(0)
        digits: StringValue = value.hexdigest("md5").substr(0, 15)
        if self.spark is not None:
            return _conv(digits, 16, 10).cast("int64").fill_null(0)
        return ("0x" + digits).cast("int64").fill_null(0)


def _builtin(name: str, arguments: tuple[str, ...], result: str) -> Any:
    """A function of one of the engines that Ibis has no name for."""

    def declared(*values: Any) -> Any: ...

    declared.__name__ = name
    parameters = [inspect.Parameter(f"x{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(arguments))]
    declared.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return ibis.udf.scalar.builtin(declared, name=name, signature=(arguments, result))


_epoch_us = _builtin("epoch_us", ("timestamp",), "int64")
_unix_micros = _builtin("unix_micros", ("timestamp('UTC')",), "int64")
_make_timestamp = _builtin("make_timestamp", ("int64",), "timestamp")
_timestamp_micros = _builtin("timestamp_micros", ("int64",), "timestamp('UTC')")
_in_zone = _builtin("timezone", ("string", "timestamp('UTC')"), "timestamp")
_of_zone = _builtin("timezone", ("string", "timestamp"), "timestamp('UTC')")
_from_utc = _builtin("from_utc_timestamp", ("timestamp('UTC')", "string"), "timestamp('UTC')")
_to_utc = _builtin("to_utc_timestamp", ("timestamp('UTC')", "string"), "timestamp('UTC')")
_conv = _builtin("conv", ("string", "int64", "int64"), "string")


def _spark_errors() -> tuple[type[Exception], ...]:
    """Spark's own, and those of Java that it did not expect."""
    from py4j.protocol import Py4JError  # noqa: PLC0415 - installed where Spark is asked for
    from pyspark.errors import PySparkException  # noqa: PLC0415

    return PySparkException, Py4JError


def _spark_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if kind != "csv":
        return {}
    quote = options.get("quote", '"')
    header = options["header"] or "skip" in options
    return {"header": header, "sep": options.get("delim", ","), "mode": "FAILFAST", "quote": quote, "escape": quote}


def _nanosecond_columns(path: str) -> dict[str, bool]:
    """The timestamps in nanoseconds of a Parquet file, and whether they are instants."""
    kinds = {field.name: field.type for field in pq.read_schema(path)}
    return {
        name: kind.tz is not None for name, kind in kinds.items() if pa.types.is_timestamp(kind) and kind.unit == "ns"
    }


def _microseconds(path: str) -> str:
    """What stands after DuckDB's `*` so that timestamps have microseconds, which both engines know."""
    casts = [
        f"CAST({quoted(name)} AS {'TIMESTAMPTZ' if instant else 'TIMESTAMP'}) AS {quoted(name)}"
        for name, instant in _nanosecond_columns(path).items()
    ]
    return f"REPLACE ({', '.join(casts)})" if casts else ""


def _spark_microseconds(path: str, types: Mapping[str, str]) -> dict[str, Any]:
    """The same as columns for Spark, rounded as DuckDB rounds; `types` are what Spark takes those of the file for.

    It reads nanoseconds as integers, but for those in the old form of 96 bits.

    Raises:
        UserError: nanoseconds lie within lists or structs.
    """
    from pyspark.sql.functions import expr  # noqa: PLC0415

    for field in pq.read_schema(path):
        if "timestamp[ns" in str(field.type) and not pa.types.is_timestamp(field.type):
            raise UserError(
                f"column '{field.name}' is {field.type}, and Spark reads no nanoseconds within lists and structs; "
                "write microseconds (PyArrow: coerce_timestamps='us'), or use engine: duckdb"
            )
    found = {}
    for name, instant in _nanosecond_columns(path).items():
        if types[name] != "bigint":
            continue
        count = f"(`{name}` + 500)"
        moment = f"timestamp_micros(({count} - pmod({count}, 1000)) DIV 1000)"
        found[name] = expr(moment if instant else f"CAST({moment} AS TIMESTAMP_NTZ)")
    return found


def _spark_columns(columns: Mapping[str, str]) -> str:
    """Columns as Spark declares them."""
    kinds = {
        name: sqlglot.exp.DataType.build(kind, dialect="duckdb").sql(dialect="spark") for name, kind in columns.items()
    }
    return ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def literal(value: Any) -> str:
    """A value, list or mapping as DuckDB writes it."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{text(key)}: {literal(inner)}' for key, inner in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
