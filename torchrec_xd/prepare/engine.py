"""The engine that runs the Ibis expressions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
from ibis.expr.types import Table

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine_settings import DuckDBSettings, EngineSettings
from torchrec_xd.prepare.spark import failure, first_line, ibis_on_spark, is_spark_error, was_cancelled


def connect(settings: EngineSettings, spill: Path) -> Any:
    """An Ibis backend; DuckDB spills into the folder `spill`.

    Raises:
        UserError: DuckDB cannot start with so little memory; PySpark, Java, the master or its workers are not there.
    """
    if settings.spark is not None:
        return ibis_on_spark(settings.spark)
    chosen = settings.duckdb or DuckDBSettings()
    options: dict[str, Any] = {"memory_limit": f"{chosen.memory_limit_gb}GB", "temp_directory": str(spill)}
    if chosen.threads is not None:
        options["threads"] = chosen.threads
    try:
        connection = ibis.duckdb.connect(**options)
    except duckdb.Error as error:
        raise UserError(
            f"DuckDB cannot start with memory_limit_gb: {chosen.memory_limit_gb} and threads: {chosen.threads}; "
            f"the defaults are 2.0 and null ({error})"
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it would draw over our own lines
    for setting in ("allocator_flush_threshold", "allocator_bulk_deallocation_flush_threshold"):
        connection.raw_sql(f"SET {setting} = '1TB'")  # what is freed is needed again in the next query
    connection.raw_sql("SET lambda_syntax = 'ENABLE_SINGLE_ARROW'")  # DuckDB 2 refuses `x -> …`, which Ibis 12 writes
    return connection


@contextmanager
def engine_errors() -> Iterator[None]:
    """What the engine reports as failures of a query: Ctrl-C stays a KeyboardInterrupt.

    Raises:
        UserError: the memory allowed is too little, the disk is full, a file cannot be read, or Spark failed: with the
            first line it says.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        if isinstance(error, duckdb.OutOfMemoryException) or "space left" in str(error).lower():
            raise UserError(
                f"DuckDB has too little memory or disk ({first_line(error)}); raise 'memory_limit_gb', lower "
                "'threads', or make room"
            ) from None
        raise UserError(f"DuckDB cannot read or write a file: {first_line(error)}") from None
    except Exception as error:
        if "interrupted" in str(error).lower() or was_cancelled(error):
            raise KeyboardInterrupt from error
        if is_spark_error(error):
            raise UserError(failure(error)) from None
        raise


def count_rows(table: Table) -> int:
    """How many rows a table has; by way of Arrow, as Ibis would otherwise want pandas."""
    return int(table.count().to_pyarrow().as_py())
