"""The engine that runs the Ibis expressions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
from ibis.expr.types import Table
from pydantic import Field, PositiveFloat, PositiveInt

from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

MAX_SEED = 2**31 - 1


class EngineSettings(Settings):
    """What runs the queries, and with how much; none of it changes a row."""

    engine: Literal["duckdb", "spark"] = "duckdb"
    """`duckdb`: in this process; `spark`: the session that PySpark finds or starts (extra `spark`)."""
    memory_limit_gb: PositiveFloat = 2.0
    """DuckDB's buffers; beyond it DuckDB spills to disk. Spark is sized by its own configuration."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """DuckDB's threads; Default: all cores."""


class FileSettings(EngineSettings):
    """How rows are sampled and cut into files."""

    seed: int = Field(default=0, ge=0, lt=MAX_SEED)
    """Enters every sampling hash."""
    part_rows: PositiveInt = 200_000
    """Rows of a file, roughly: one file is computed and sorted at a time, so this bounds the memory."""


def connect(settings: EngineSettings, spill: Path) -> Any:
    """An Ibis backend; DuckDB spills into the folder `spill`.

    Raises:
        UserError: `engine: spark` without PySpark or Java, or DuckDB cannot start with so little memory.
    """
    if settings.engine == "spark":
        return _connect_spark()
    options: dict[str, Any] = {"memory_limit": f"{settings.memory_limit_gb}GB", "temp_directory": str(spill)}
    if settings.threads is not None:
        options["threads"] = settings.threads
    try:
        connection = ibis.duckdb.connect(**options)
    except duckdb.Error as error:
        raise UserError(
            f"DuckDB cannot start with memory_limit_gb: {settings.memory_limit_gb} and threads: {settings.threads}; "
            f"the defaults are 2.0 and null ({error})"
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it would draw over our own lines
    connection.raw_sql("SET lambda_syntax = 'ENABLE_SINGLE_ARROW'")  # DuckDB 2 refuses `x -> …`, which Ibis 12 writes
    return connection


def _connect_spark() -> Any:
    try:
        return ibis.pyspark.connect()
    except ImportError:
        raise UserError(
            "engine: spark needs PySpark, which is not installed; install torchrec-xd[spark], or use engine: duckdb"
        ) from None
    except Exception as error:
        if "JAVA" not in str(error).upper():
            raise
        raise UserError(
            f"engine: spark could not start Java ({error}); install Java 17 or newer, or use engine: duckdb"
        ) from None


@contextmanager
def engine_errors() -> Iterator[None]:
    """What DuckDB reports as failures of a query: Ctrl-C stays a KeyboardInterrupt.

    Raises:
        UserError: the memory allowed is too little, or the disk is full.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"DuckDB has too little memory or disk ({reason}); raise 'memory_limit_gb', lower 'threads', or make room"
        ) from None
    except Exception as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


def count_rows(table: Table) -> int:
    """How many rows a table has; by way of Arrow, as Ibis would otherwise want pandas."""
    return int(table.count().to_pyarrow().as_py())
