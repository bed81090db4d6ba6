"""Small tables as files would bring them, and batches in comparable form."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.rows import Rows
from torchrec_xd.schema import Schema

ROWS = 50


def schema_of(*features: dict[str, Any], **more: Any) -> Schema:
    """Two domains, one label each by default."""
    return Schema.model_validate(
        {
            "name": "s",
            "user": "user",
            "domains": {"a": {"role": "source", "train": "a"}, "b": {"role": "target", "train": "b"}},
            "tasks": [{"label": "click", "domain": "a"}, {"label": "buy", "domain": "b"}],
            "features": [{"group": "sequence" if f["kind"] == "sequence" else "shared", **f} for f in features],
            **more,
        }
    )


def rows_of(schema: Schema, table: pa.Table, domain: str, *, labels: bool = True, extra: tuple[str, ...] = ()) -> Rows:
    """The table as a file would bring it: through Parquet, checked and decoded."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    read = pq.ParquetFile(buffer).read()
    decoder = Decoder(schema, domain, labels=labels, extra=extra)
    decoder.check("f.parquet", read.schema)
    batch = pa.RecordBatch.from_struct_array(read.to_struct_array().combine_chunks())
    return decoder.decode(batch, Origin("f.parquet", 100))


def row_lists(jagged: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    """key -> row -> ids, by TorchRec's own reading of lengths and values (which it refuses for no rows at all)."""
    if jagged.stride() == 0:
        return {key: [] for key in jagged.keys()}  # noqa: SIM118 - no dict
    return {key: [row.tolist() for row in part.to_dense()] for key, part in jagged.to_dict().items()}
