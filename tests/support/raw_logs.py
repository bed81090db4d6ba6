"""Small raw logs, as users have them: two logs of exposures of the same users."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

START = datetime(2024, 3, 1)


def exposures(rows: int, items: int, item: str = "item_id", seed: int = 0, days: int = 50) -> pa.Table:
    """Rows in the order of time, over `days` days: user, item, time, click and attributes."""
    random = np.random.default_rng(seed)
    user = random.integers(0, 80, rows)
    columns: dict[str, Any] = {
        "user_id": user,
        item: random.integers(0, items, rows),
        "ts": [START + timedelta(days=days) * (i / rows) for i in range(rows)],
        "click": (random.random(rows) < 0.3).astype(np.int64),
        "category": np.array(["toys", "tools", "food"])[random.integers(0, 3, rows)],
        "price": np.round(random.lognormal(2, 0.5, rows), 2),
        "device": np.array(["ios", "android"])[random.integers(0, 2, rows)],
        "age": 20 + user % 30,
    }
    return pa.table(columns)


def with_columns(table: pa.Table, **columns: Any) -> pa.Table:
    """The table with more columns, or others in place of those it has."""
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table
