"""Spark computes the very rows that DuckDB computes, types and order included."""

import pyarrow.parquet as pq
import pytest

from tests.support.raw_journey import varied, write_raw
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.prepare.engine import connect


def types(table):
    return [(field.name, str(field.type)) for field in table.schema]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cj_feed", "cj_departments", "cj_placement"])
def test_the_rows_are_those_of_duckdb(tmp_path, local_spark, name):
    connect(local_spark, tmp_path)  # `engine: spark` takes the session that is there
    raw = write_raw(varied(4), tmp_path / "raw")
    for engine in ("duckdb", "spark"):
        made = prepare(name, tmp_path / engine, PrepareSettings(engine=engine, negatives=3), str, raw=raw)
    assert made.versions["pyspark"]
    for domain, splits in made.domains.items():
        for split in splits:
            rows = {engine: pq.read_table(tmp_path / engine / domain / split) for engine in ("duckdb", "spark")}
            assert rows["spark"].num_rows > 20
            assert types(rows["spark"]) == types(rows["duckdb"])
            assert rows["spark"] == rows["duckdb"]
