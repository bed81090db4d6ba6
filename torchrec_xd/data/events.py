"""Sequences that are columns of the same events: every row has equally many ids in each of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from torchrec_xd.data.origin import Origin
from torchrec_xd.data.weights import list_lengths
from torchrec_xd.feature import Feature


def check_aligned(batch: pa.RecordBatch, sequences: Mapping[str, tuple[Feature, ...]], origin: Origin) -> None:
    """Check the columns of every sequence of `Schema.sequences`.

    Raises:
        UserError: a row has more or fewer ids in one than in another; a null list has none.
    """
    for name, (first, *others) in sequences.items():
        for other in others:
            lengths, found = (list_lengths(batch.column(feature.column)) for feature in (first, other))
            if not np.array_equal(lengths, found):
                row = int(np.argmax(lengths != found))
                rule = (
                    f"is how many ids this row has here, and {lengths[row]} in '{first.column}': both are columns of "
                    f"the events '{name}', so make them equally long"
                )
                raise origin.fault(other.column, row, int(found[row]), rule)
