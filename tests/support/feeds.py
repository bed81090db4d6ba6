"""A small feed of three domains with different schemas, as Parquet, with labels that can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, CATEGORIES = 40, 60, 6

SCHEMA = {
    "name": "feed",
    "user": "user",
    "activity": "clicks",
    "dim": 4,
    "domains": {
        "items": {"role": "source", "train": "items/train.parquet", "valid": "items/valid.parquet"},
        "video": {"role": "source", "train": "video/train.parquet"},
        "post": {
            "role": "target",
            "train": "post/train.parquet",
            "valid": "post/valid.parquet",
            "test": "post/test.parquet",
        },
    },
    "tasks": [
        {"label": "click", "domain": "items"},
        {"label": "click", "domain": "video"},
        {"label": "click", "domain": "post"},
    ],
    "features": [
        {"column": "user", "kind": "id", "group": "user", "rows": USERS},
        {"column": "age", "kind": "dense", "group": "user"},
        {"column": "hist", "kind": "sequence", "group": "sequence", "table": "item", "rows": ITEMS, "length": 5},
        {"column": "category", "kind": "id", "group": "shared", "rows": CATEGORIES},
        {"column": "hour", "kind": "id", "group": "context", "rows": 24},
        {"column": "item", "kind": "id", "group": "specific", "domains": ["items"], "rows": ITEMS},
        {"column": "price", "kind": "dense", "group": "specific", "domains": ["items"]},
        {"column": "tags", "kind": "bag", "group": "specific", "domains": ["video"], "rows": 10, "pooling": "mean"},
        {"column": "style", "kind": "id", "group": "specific", "domains": ["post"], "rows": 5},
        {"column": "words", "kind": "dense", "group": "specific", "domains": ["post"]},
        {"column": "topic", "kind": "id", "group": "specific", "domains": ["post"], "rows": 7},
    ],
}
"""A domain called `items` and a column called `hist` on purpose: names that a ModuleDict would refuse or confuse."""
HISTORIES = [
    {"column": "watched", "kind": "sequence", "group": "sequence", "table": "clip", "rows": 9, "length": 4},
    {"column": "seen", "kind": "sequence", "group": "sequence", "table": "style", "rows": 5, "length": 4},
]
"""Further histories: with `hist`, every domain has one."""


def write_feed(folder: Path, rows: int = 400, seed: int = 0) -> Path:
    """Write all splits of the three domains into `folder`, row groups of 64; `items` twice as long as the others."""
    random = np.random.default_rng(seed)
    taste = random.normal(size=(USERS, CATEGORIES))
    for domain, splits in {
        "items": ("train", "valid"),
        "video": ("train",),
        "post": ("train", "valid", "test"),
    }.items():
        for split in splits:
            n = (2 if domain == "items" else 1) * (rows if split == "train" else rows // 2)
            user, category = random.integers(USERS, size=n), random.integers(CATEGORIES, size=n)
            columns = {
                "user": user,
                "clicks": random.integers(60, size=n),
                "age": random.random(n).astype(np.float32),
                "hist": [random.integers(ITEMS, size=k).tolist() for k in random.integers(8, size=n)],
                "category": category,
                "hour": random.integers(24, size=n),
                "click": (random.random(n) < 1 / (1 + np.exp(-2 * taste[user, category]))).astype(np.int8),
            }
            own = {
                "items": {"item": random.integers(ITEMS, size=n), "price": random.random(n)},
                "video": {"tags": [random.integers(10, size=k).tolist() for k in random.integers(4, size=n)]},
                "post": {
                    "style": random.integers(5, size=n),
                    "words": random.integers(100, size=n),
                    "topic": random.integers(7, size=n),
                },
            }
            path = folder / domain / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({**columns, **own[domain]}), path, row_group_size=64)
    return folder


def schema_at(folder: Path) -> dict:
    """The schema of a feed written into `folder`."""
    return {**SCHEMA, "root": str(folder)}


def write_histories(folder: Path) -> Path:
    """Add the histories to the files of a feed."""
    random = np.random.default_rng(0)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        for feature in HISTORIES:
            lengths = random.integers(6, size=len(table))
            ids = [random.integers(feature["rows"], size=n).tolist() for n in lengths]
            table = table.append_column(feature["column"], pa.array(ids, pa.list_(pa.int64())))
        pq.write_table(table, path, row_group_size=64)
    return folder


def histories_at(folder: Path) -> dict:
    """The schema of a feed with histories written into `folder`."""
    return {**schema_at(folder), "features": [*SCHEMA["features"], *HISTORIES]}
