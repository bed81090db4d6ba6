"""Rows of tables that domains touch, counted by hand."""

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.diagnostics.tables import TouchedTables
from torchrec_xd.schema import Schema


def test_touched_rows_counted_by_hand(tmp_path):
    columns = {
        "a": {"user": [1, 1, 2], "click": [0, 1, 0], "item": [0, 3, 3], "seen": [[5], [], [5, 6]]},
        "b": {"user": [2, 3], "click": [1, 0], "item": [3, 4], "tag": [1, 1]},
    }
    for domain, given in columns.items():
        pq.write_table(pa.table(given), tmp_path / f"{domain}.parquet")
    schema = Schema.model_validate(
        {
            "name": "hand",
            "user": "user",
            "root": str(tmp_path),
            "domains": {d: {"role": "target", "train": f"{d}.parquet"} for d in columns},
            "tasks": [{"label": "click", "domain": d} for d in columns],
            "features": [
                {"column": "user", "kind": "id", "group": "user", "rows": 10},
                {"column": "item", "kind": "id", "group": "shared", "rows": 8},
                {"column": "seen", "kind": "bag", "group": "user", "rows": 8, "table": "item", "domains": ["a"]},
                {"column": "tag", "kind": "id", "group": "specific", "rows": 4, "domains": ["b"]},
            ],
        }
    )
    found = TouchedTables(schema)
    for batch in Loader(schema, LoaderSettings(batch_size=2), "train").batches():
        found.update(batch, None, {})
    tables = {table["table"]: table for table in found.values()["tables"]}
    assert tables["user"] == {
        "table": "user",
        "rows": 10,
        "domains": {"a": {"touched": 2, "share": 0.2}, "b": {"touched": 2, "share": 0.2}},
        "touched": 3,
        "shared": 1,
        "shared_of_touched": 1 / 3,
    }
    assert tables["item"]["domains"] == {"a": {"touched": 4, "share": 0.5}, "b": {"touched": 2, "share": 0.25}}
    assert (tables["item"]["touched"], tables["item"]["shared"]) == (5, 1)
    assert tables["tag"]["domains"]["a"] == {"touched": 0, "share": 0.0}
    assert tables["tag"]["shared_of_touched"] == 0
