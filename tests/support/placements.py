"""A home page (target) with two sources, as Parquet: the labels of EXIT, scenes, and the search's own rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS = 30, 40
LABELS = ("click", "wanted_search", "fit_search", "wanted_map", "fit_map")
SCHEMA = {
    "name": "placements",
    "user": "user",
    "weight": "weight",
    "dim": 4,
    "domains": {
        "search": {"role": "source", "train": "search/train.parquet"},
        "home": {"role": "target", "train": "home/train.parquet", "test": "home/test.parquet"},
    },
    "tasks": [{"label": "click", "domain": "search"}, *({"label": label, "domain": "home"} for label in LABELS)],
    "features": [
        {"column": "user", "kind": "id", "group": "user", "rows": USERS},
        {"column": "age", "kind": "dense", "group": "user"},
        {"column": "hist", "kind": "sequence", "group": "sequence", "table": "item", "rows": ITEMS, "length": 4},
        {"column": "item", "kind": "id", "group": "shared", "rows": ITEMS},
        {"column": "hour", "kind": "id", "group": "context", "rows": 24},
        {"column": "slot", "kind": "id", "group": "scene", "rows": 6},
        {"column": "place", "kind": "id", "group": "scene", "rows": 5},
    ],
}
TASKS = [f"{label}@home" for label in LABELS]
SETTINGS = {
    "target": "click@home",
    "sources": {
        "search": {"wanted": "wanted_search@home", "fit": "fit_search@home"},
        "map": {"wanted": "wanted_map@home", "fit": "fit_map@home"},
    },
    "widths": (6, 5),
    "scene_widths": (3,),
}


def write_placements(folder: Path, rows: int = 320, seed: int = 0) -> Path:
    """Write both domains into `folder`; labels and weights at random."""
    random = np.random.default_rng(seed)
    for domain, split in (("home", "train"), ("home", "test"), ("search", "train")):
        columns = {
            "user": random.integers(USERS, size=rows),
            "weight": random.choice([1.0, 4.0], size=rows).astype(np.float32),
            "age": random.random(rows).astype(np.float32),
            "hist": [random.integers(ITEMS, size=k).tolist() for k in random.integers(7, size=rows)],
            "item": random.integers(ITEMS, size=rows),
            "hour": random.integers(24, size=rows),
            "slot": random.integers(6, size=rows),
            "place": random.integers(5, size=rows),
        }
        for label in LABELS if domain == "home" else LABELS[:1]:
            columns[label] = random.integers(2, size=rows).astype(np.int8)
        path = folder / domain / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=64)
    return folder


def schema_at(folder: Path) -> dict:
    """The schema of what was written into `folder`."""
    return {**SCHEMA, "root": str(folder)}
