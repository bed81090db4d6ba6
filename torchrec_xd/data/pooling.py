"""Mean ids per sample of every feature, measured on training files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.weights import as_lists
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

ROW_GROUPS_MEASURED = 8
"""Row groups of each domain that `measured_pooling` reads."""


def measured_pooling(schema: Schema) -> dict[str, float]:
    """Mean ids per sample of every feature with a table, over the first row groups of each domain's training files.

    A feature counts nothing in rows of domains without it, as in a batch of mixed domains.
    """
    columns = {feature.column: feature for table in schema.tables() for feature in table.features}
    ids = dict.fromkeys(columns, 0)
    rows = 0
    for name, domain in schema.domains.items():
        files = ParquetFiles(domain.paths("train"), schema.root, lambda file, found: None)
        own = [f.column for f in schema.features_of(name) if f.column in columns]
        read = files.reader(own)
        for row_group in files.row_groups[:ROW_GROUPS_MEASURED]:
            table = read(row_group)
            rows += table.num_rows
            for column in table.column_names:
                ids[column] += _ids(table[column], columns[column].length)
    if not rows:
        raise UserError(f"schema '{schema.name}': the training files hold no rows to measure pooling on")
    # A feature that never occurs still costs its lookup.
    return {column: max(count / rows, 1e-6) for column, count in ids.items()}


def _ids(column: pa.ChunkedArray, length: int | None) -> int:
    column = as_lists(column)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return len(column) - int(column.null_count)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    if length is not None:
        lengths = pc.min_element_wise(lengths, length)
    return int(pc.sum(lengths).as_py() or 0)
