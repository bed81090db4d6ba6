"""The engine that runs the Ibis expressions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
from ibis.expr.types import Table
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.spark import (
    SparkSettings,
    failure,
    first_line,
    ibis_on_spark,
    is_spark_error,
    was_cancelled,
)
from torchrec_xd.settings import Settings

MAX_SEED = 2**31 - 1


class DuckDBSettings(Settings):
    """DuckDB, in this process."""

    memory_limit_gb: PositiveFloat = 2.0
    """DuckDB's buffers; beyond it DuckDB spills to disk. Spark is sized by its own configuration."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """DuckDB's threads; Default: all cores."""


class EngineSettings(Settings):
    """What runs the queries: `duckdb` or `spark`, alone as text or with its settings; it does not change a row."""

    duckdb: DuckDBSettings | None = None
    """In this process: `{duckdb: {memory_limit_gb: 4}}`. Default: this, as it comes."""
    spark: SparkSettings | None = None
    """On Spark (extra `spark`, Java 17 or newer): `{spark: {master: "spark://127.0.0.1:7077"}}`."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, content: Any) -> Any:
        if isinstance(content, str):
            content = {content: {}}
        if isinstance(content, dict):
            given = {name: value for name, value in content.items() if value is not None}
            if {"duckdb", "spark"} <= given.keys():
                raise ValueError("only one engine runs the queries: duckdb or spark")
            content = given or {name: {} for name in [*content, "duckdb"][:1]}
        return content

    @property
    def engine(self) -> Literal["duckdb", "spark"]:
        """Its name."""
        return "duckdb" if self.spark is None else "spark"


class DataSetEngineSettings(DuckDBSettings):
    """The same choice as the data sets that come with the package spell it."""

    engine: Literal["duckdb", "spark"] = "duckdb"
    """`duckdb`: in this process; `spark`: the session that PySpark finds or starts (extra `spark`)."""

    def chosen(self) -> EngineSettings:
        """The engine with its settings."""
        if self.engine == "spark":
            return EngineSettings(spark=SparkSettings())
        return EngineSettings(duckdb=DuckDBSettings(memory_limit_gb=self.memory_limit_gb, threads=self.threads))


class FileSettings(DataSetEngineSettings):
    """How rows are sampled and cut into files."""

    seed: int = Field(default=0, ge=0, lt=MAX_SEED)
    """Enters every sampling hash."""
    part_rows: PositiveInt = 200_000
    """Rows of a file, roughly: one file is computed and sorted at a time, so this bounds the memory."""


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
        UserError: the memory allowed is too little, the disk is full, or Spark failed: with the first line it says.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise UserError(
            f"DuckDB has too little memory or disk ({first_line(error)}); raise 'memory_limit_gb', lower 'threads', "
            "or make room"
        ) from None
    except Exception as error:
        if "interrupted" in str(error).lower() or was_cancelled(error):
            raise KeyboardInterrupt from error
        if is_spark_error(error):
            raise UserError(failure(error)) from None
        raise


def count_rows(table: Table) -> int:
    """How many rows a table has; by way of Arrow, as Ibis would otherwise want pandas."""
    return int(table.count().to_pyarrow().as_py())
