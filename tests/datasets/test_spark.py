"""Spark computes the very rows that DuckDB computes."""

import pyarrow.dataset as ds

from tests.support.raw_journey import varied, write_raw
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.prepare.engine import connect


def test_the_rows_are_those_of_duckdb(tmp_path, local_spark):
    connect(local_spark, tmp_path)  # `engine: spark` takes the session that is there
    raw = write_raw(varied(4), tmp_path / "raw")
    for engine in ("duckdb", "spark"):
        made = prepare("cj_feed", tmp_path / engine, PrepareSettings(engine=engine, negatives=3), str, raw=raw)
    assert made.versions["pyspark"]
    for domain, splits in made.domains.items():
        for split in splits:
            rows = {engine: ds.dataset(tmp_path / engine / domain / split).to_table() for engine in ("duckdb", "spark")}
            assert rows["spark"].num_rows > 20
            assert rows["spark"] == rows["duckdb"]
