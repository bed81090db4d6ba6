"""Data sets whose rows are numbered, so that a batch says which rows it holds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.batch import Batch
from torchrec_xd.schema import Schema

Layout = list[list[int]]
"""The files of a domain, each as the sizes of its row groups."""


def write_domain(folder: Path, layout: Layout) -> int:
    """Rows numbered 0, 1, … over all files, in the columns `user` and `item` (modulo 10) and `history` (the number's
    digits); returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    numbers = itertools.count()
    types = pa.schema([("user", pa.int64()), ("item", pa.int32()), ("history", pa.list_(pa.int64())), ("y", pa.int8())])
    for i, row_groups in enumerate(layout):
        with pq.ParquetWriter(folder / f"{i}.parquet", types) as writer:
            for rows in row_groups:
                users = list(itertools.islice(numbers, rows))
                columns = [
                    users,
                    [user % 10 for user in users],
                    [[int(digit) for digit in str(user)] for user in users],
                    [0] * rows,
                ]
                writer.write_table(pa.table(columns, schema=types))
    return next(numbers)


def schema_of(root: Path, count: int) -> Schema:
    names = [f"d{i}" for i in range(count)]
    return Schema.model_validate(
        {
            "name": "numbered",
            "user": "user",
            "root": str(root),
            "domains": {name: {"role": "target", "train": name, "test": name} for name in names},
            "tasks": [{"label": "y", "domain": name} for name in names],
            "features": [
                {"column": "item", "kind": "id", "group": "shared", "rows": 10},
                {
                    "column": "history",
                    "kind": "sequence",
                    "group": "sequence",
                    "rows": 10,
                    "length": 4,
                    "table": "digit",
                },
            ],
        }
    )


def write(root: Path, domains: list[Layout]) -> tuple[Schema, list[int]]:
    return schema_of(root, len(domains)), [write_domain(root / f"d{i}", layout) for i, layout in enumerate(domains)]


def users(batch: Batch, domain: int) -> list[int]:
    rows: list[int] = batch.user_B[batch.rows(domain)].tolist()
    return rows


def content(batch: Batch) -> dict[str, Any]:
    """All that a batch says, in comparable form."""
    return {
        "position": batch.position,
        "offsets": batch.offsets,
        "user": batch.user_B.tolist(),
        "bags": (batch.bags.values().tolist(), batch.bags.lengths().tolist()),
        "sequences": (batch.sequences.values().tolist(), batch.sequences.lengths().tolist()),
        "label": batch.label_BT.nan_to_num(-1).tolist(),
    }
