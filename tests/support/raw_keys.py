"""A feed whose users are texts and whose items are far-apart integers: what vocabularies give rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.feeds import schema_at, write_feed

LIVING = {"user", "item", "hist"}


def write_raw(folder: Path, seed: int, users: tuple[int, int] = (0, 40), rows: int = 96) -> Path:
    """Write a feed in which only users of [first, stop) occur, as `u<number>`; items are 10^12 x number - 3."""
    write_feed(folder, rows=rows, seed=seed)
    first, stop = users
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        user = first + table["user"].to_numpy() % (stop - first)
        columns = {"user": pa.array([f"u{number}" for number in user])}
        for name in ("hist", "item"):
            if name in table.column_names:
                columns[name] = pa.array(_items(table[name].to_pylist()))
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, values)
        pq.write_table(table, path, row_group_size=64)
    return folder


def _items(values: list[Any]) -> list[Any]:
    return [_items(value) if isinstance(value, list) else 10**12 * value - 3 for value in values]


def raw_schema_at(folder: Path, **vocabulary: Any) -> dict[str, Any]:
    """The schema of a raw feed, with a vocabulary for users and one for items."""
    schema = schema_at(folder)
    features = [
        {**{k: v for k, v in f.items() if k != "rows"}, "vocabulary": {"block": 16, **vocabulary}}
        if f["column"] in LIVING
        else f
        for f in schema["features"]
    ]
    return {**schema, "features": features}


def users_of(folder: Path, domains: list[str], split: str = "train") -> dict[str, int]:
    """How often each user occurs."""
    names = np.concatenate([pq.read_table(folder / d / f"{split}.parquet")["user"].to_numpy() for d in domains])
    found, counts = np.unique(names, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
