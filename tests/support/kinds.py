"""The further kinds of features, added to any feed of these tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 6
"""Of the vectors."""
BRANDS, ACTIONS = 9, 4
"""Rows of the table that weighted bags look up, and of the actions of events."""


def write_kinds(folder: Path) -> Path:
    """Add columns to all files of a feed.

    Vectors `text` and `image` (a fifth of them null); weighted bags `likes`, with weights in `like_shares`, and
    `tastes`, of pairs; an id `brand` of the same table; events of a `past_brand` and a `past_action` each; an `action`.
    """
    random = np.random.default_rng(0)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        n = len(table)
        text = pa.FixedSizeListArray.from_arrays(random.normal(size=n * LENGTH).astype(np.float16), LENGTH)
        image = pa.array(
            [None if random.random() < 0.2 else row for row in random.normal(size=(n, LENGTH))], pa.list_(pa.float32())
        )
        lengths = random.integers(4, size=n)
        ids = [random.integers(BRANDS, size=k).tolist() for k in lengths]
        shares = [random.normal(size=k).tolist() for k in lengths]
        tastes = [list(zip(random.integers(BRANDS, size=k).tolist(), random.random(k), strict=True)) for k in lengths]
        events = random.integers(5, size=n)
        further = {
            "text": text,
            "image": image,
            "likes": pa.array(ids, pa.list_(pa.int64())),
            "like_shares": pa.array(shares, pa.list_(pa.float32())),
            "tastes": pa.array(tastes, pa.map_(pa.int64(), pa.float64())),
            "past_brand": pa.array([random.integers(BRANDS, size=k).tolist() for k in events], pa.list_(pa.int64())),
            "past_action": pa.array([random.integers(ACTIONS, size=k).tolist() for k in events], pa.list_(pa.int64())),
            "action": pa.array(random.integers(ACTIONS, size=n)),
            "brand": pa.array(random.integers(BRANDS, size=n)),
        }
        for name, column in further.items():
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
    brand = {"table": "brand", "rows": BRANDS}
    features += [
        {"column": "likes", "kind": "bag", "group": "user", "weights": "like_shares", **brand},
        {"column": "tastes", "kind": "bag", "group": "context", "weights": "tastes", **brand},
        {"column": "brand", "kind": "id", "group": "shared", **brand},
        {"column": "action", "kind": "id", "group": "shared", "rows": ACTIONS},
    ]
    past = {"kind": "sequence", "group": "sequence", "length": 3, "events": "past"}
    features += [
        {"column": "past_brand", "rows": BRANDS, **past},
        {"column": "past_action", "table": "action", "rows": ACTIONS, **past},
    ]
    return {**content, "features": [*content["features"], *features]}
