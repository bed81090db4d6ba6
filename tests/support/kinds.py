"""The further kinds of features, added to any feed of these tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 6
"""Of the vectors."""


def write_kinds(folder: Path) -> Path:
    """Add columns to all files of a feed: vectors `text` and `image` (a fifth of them null) to every row."""
    random = np.random.default_rng(0)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        n = len(table)
        text = pa.FixedSizeListArray.from_arrays(random.normal(size=n * LENGTH).astype(np.float16), LENGTH)
        image = pa.array(
            [None if random.random() < 0.2 else row for row in random.normal(size=(n, LENGTH))], pa.list_(pa.float32())
        )
        for name, column in {"text": text, "image": image}.items():
            table = table.append_column(name, column)
        pq.write_table(table, path, row_group_size=64)
    return folder


def with_kinds(content: dict, *, specific: str | None = None) -> dict:
    """A schema with these features too.

    Args:
        content: the schema of a feed.
        specific: domain whose specific feature `image` is. Default: it is the context.
    """
    own = {"group": "context"} if specific is None else {"group": "specific", "domains": [specific]}
    features = [
        {"column": "text", "kind": "vector", "length": LENGTH, "group": "shared"},
        {"column": "image", "kind": "vector", "length": LENGTH, "indicator": True, **own},
    ]
    return {**content, "features": [*content["features"], *features]}
