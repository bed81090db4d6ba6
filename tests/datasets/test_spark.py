"""Spark computes the very rows that DuckDB computes."""

from __future__ import annotations

import importlib.util
import shutil

import pyarrow.dataset as ds
import pytest

from tests.support.raw_journey import varied, write_raw
from torchrec_xd.datasets import PrepareSettings, prepare


@pytest.fixture(scope="module")
def spark():
    """A session of this process; `engine: spark` takes the one that is there."""
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("PySpark is not installed (extra 'spark')")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, and there is no command 'java'")
    from pyspark.sql import SparkSession

    settings = {"spark.sql.shuffle.partitions": "1", "spark.default.parallelism": "1", "spark.ui.enabled": "false"}
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.mark.usefixtures("spark")
def test_the_rows_are_those_of_duckdb(tmp_path):
    raw = write_raw(varied(4), tmp_path / "raw")
    for engine in ("duckdb", "spark"):
        made = prepare("cj_feed", tmp_path / engine, PrepareSettings(engine=engine, negatives=3), str, raw=raw)
    assert made.versions["pyspark"]
    for domain, splits in made.domains.items():
        for split in splits:
            rows = {engine: ds.dataset(tmp_path / engine / domain / split).to_table() for engine in ("duckdb", "spark")}
            assert rows["spark"].num_rows > 20
            assert rows["spark"] == rows["duckdb"]
