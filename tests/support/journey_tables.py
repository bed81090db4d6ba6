"""Small tables on one DuckDB connection; Ibis' own default one outlives the interpreter noisily."""

import ibis
import pyarrow as pa
from ibis.expr.types import Table

CONNECTION = ibis.duckdb.connect(threads=1)


def table(**columns: object) -> Table:
    """A table of these columns: lists or Arrow arrays."""
    return CONNECTION.create_table(ibis.util.gen_name("rows"), pa.table(columns), temp=True)
