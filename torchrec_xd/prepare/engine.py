"""The engine that runs the Ibis expressions, and how its rows become Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ibis
import pyarrow.parquet as pq
from ibis.expr.types import Table
from pydantic import Field, PositiveInt

from torchrec_xd.settings import Settings, UserError

ROW_GROUP_ROWS = 65_536


class PrepareSettings(Settings):
    """How a data set is prepared. Same settings, same rows, whatever the engine and the number of threads."""

    engine: Literal["duckdb", "spark"] = "duckdb"
    """`duckdb`: in this process; `spark`: the session that PySpark finds or starts (extra `spark`)."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Enters every sampling hash."""
    negatives: PositiveInt = 146
    """One in this many unbought products on promotion is kept, with this number as its row weight."""
    part_rows: PositiveInt = 200_000
    """Rows of a file, roughly: one file is computed and sorted at a time, so this bounds the memory."""
    memory_limit_gb: float = Field(default=2.0, gt=0)
    """DuckDB's buffers; beyond it DuckDB spills to disk. Spark is sized by its own configuration."""
    threads: PositiveInt | None = None
    """DuckDB's threads; all cores unless told. Does not change the rows."""


def connect(settings: PrepareSettings, scratch: Path) -> Any:
    """An Ibis backend; DuckDB spills into `scratch`.

    Raises:
        UserError: `engine: spark` without PySpark or Java.
    """
    if settings.engine == "spark":
        return _connect_spark()
    options: dict[str, Any] = {"memory_limit": f"{settings.memory_limit_gb}GB", "temp_directory": str(scratch)}
    if settings.threads is not None:
        options["threads"] = settings.threads
    return ibis.duckdb.connect(**options)


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


def write(rows: Table, order: list[str], path: Path) -> int:
    """Write `rows`, sorted by `order`, to one Parquet file of even row groups; returns how many they are.

    The rows pass through this process on either engine, so that both write the same types and row groups.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows.order_by(order).drop(order).to_pyarrow()
    pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    return int(table.num_rows)
