"""Which engine runs a recipe's queries, and with how much memory: settings alone, without the engines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchrec_xd.settings import Settings

MAX_SEED = 2**31 - 1


class SparkSettings(Settings):
    """Spark: where it runs, and its own configuration."""

    master: str | None = None
    """`local[4]`: in this process, on so many cores; `spark://HOST:PORT`: a standalone cluster. Default: that of the
    session which this process has already, else `local[*]`."""
    conf: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Spark's own settings: `{spark.executor.memory: 4g, spark.local.dir: /scratch}`."""

    @model_validator(mode="after")
    def _check(self) -> SparkSettings:
        for name in (
            "spark.sql.session.timeZone",
            "spark.sql.ansi.enabled",
            "spark.sql.legacy.parquet.nanosAsLong",
        ):
            if name in self.conf:
                raise ValueError(f"'conf': {name} decides what values mean, and is set by prepare; leave it out")
        return self


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
