"""Rows that are in memory as columns -> batches, as the loader makes them of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.origin import Origin
from torchrec_xd.schema import Schema


def batches_of(
    columns: Mapping[str, NDArray[Any] | pa.Array], schema: Schema, domain: str, batch_size: int
) -> Iterator[Batch]:
    """The rows of one domain, in their order, without labels.

    Args:
        columns: by name, equally long; those that the schema does not name are left alone.
        schema: what they mean.
        domain: of the rows.
        batch_size: rows of a batch at most.

    Raises:
        UserError: a column is missing, of a wrong type, or breaks a rule.
    """
    table = pa.table(dict(columns))
    decoder, collate = Decoder(schema, domain, labels=False, extra=()), Collator(schema, 0)
    decoder.check("the rows in memory", table.schema)
    table = table.select(decoder.columns)
    place, first = list(schema.domains).index(domain), 0
    for step, part in enumerate(table.to_batches(batch_size), start=1):
        rows = decoder.decode(part, Origin("the rows in memory", first))
        yield collate([[rows] if d == place else [] for d in range(len(schema.domains))], LoaderState(0, step))
        first += len(rows)
