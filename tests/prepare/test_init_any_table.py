"""`torchrec-xd init` on tables of any columns: a recipe that loads and whose SQL runs, or an error that says why."""

from __future__ import annotations

import string
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.recipes import made_recipe
from torchrec_xd.errors import UserError

ROWS = 60
NAMES = st.sampled_from(
    [
        "user_id",
        "uid",
        "item_id",
        "ts",
        "time",
        "click",
        "is_new",
        "rating",
        "event",
        "price",
        "tags",
        "order",
        "weight",
    ]
) | st.text(string.ascii_letters + "_ .é\"'\n0", min_size=1, max_size=8)


def _column(kind: str, seed: int, nulls: bool) -> pa.Array:
    random = np.random.default_rng(seed)
    values: list[Any]
    if kind == "times":
        values = [datetime(2024, 1, 1) + timedelta(hours=int(hour)) for hour in random.integers(0, 2000, ROWS)]
    elif kind == "dates":
        values = [datetime(2024, 1, 1).date() + timedelta(days=int(day)) for day in random.integers(0, 90, ROWS)]
    elif kind == "time texts":
        values = [f"2024-01-{1 + i % 28:02d} 10:00:00" for i in range(ROWS)]
    elif kind == "texts":
        values = ["".join(random.choice(list("ab |,'{"), 3)) for _ in range(ROWS)]
    elif kind == "lists":
        values = [random.integers(0, 9, random.integers(0, 3)).tolist() for _ in range(ROWS)]
    elif kind == "vectors":
        values = random.random((ROWS, 3)).tolist()
    elif kind == "floats":
        values = [float("nan") if x < 0.1 else float(x) for x in random.random(ROWS)]
    elif kind == "structs":
        values = [{"a": 1}] * ROWS
    elif kind == "nothing":
        values = [None] * ROWS
    elif kind == "booleans":
        values = (random.random(ROWS) < 0.4).tolist()
    else:
        values = random.integers(0, {"bits": 2, "few": 7, "many": 10**12, "epochs": 3}[kind], ROWS).tolist()
        values = [1_700_000_000 + 9_000 * i for i in range(ROWS)] if kind == "epochs" else values
    return pa.array([None if nulls and i % 7 == 0 else value for i, value in enumerate(values)])


KINDS = [
    "times",
    "dates",
    "time texts",
    "texts",
    "lists",
    "vectors",
    "floats",
    "structs",
    "nothing",
    "booleans",
    "bits",
]
COLUMNS = st.builds(_column, st.sampled_from([*KINDS, "few", "many", "epochs"]), st.integers(0, 99), st.booleans())
TABLES = st.dictionaries(NAMES, COLUMNS, min_size=1, max_size=7)
USERS = st.sampled_from(
    [{}, {"user_id": pa.array([i % 9 for i in range(ROWS)]), "click": pa.array([0, 1] * (ROWS // 2))}]
)


@given(st.lists(st.tuples(TABLES, USERS), min_size=1, max_size=2))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_valid_recipe_or_an_error(tables: list[tuple[dict[str, pa.Array], dict[str, pa.Array]]]) -> None:
    with TemporaryDirectory() as folder:
        inputs = []
        for i, (columns, users) in enumerate(tables):
            pq.write_table(pa.table({**columns, **users}), f"{folder}/{i}.parquet")
            inputs.append(f"log{i}={folder}/{i}.parquet")
        try:
            recipe, _ = made_recipe(Path(folder, "x.yaml"), *inputs)
        except UserError:
            return
        for name, domain in recipe.domains.items():
            labels = set(domain.labels)
            own = [each for each in recipe.features if each.domains is None or name in each.domains]
            assert not labels & {each.column for each in own}
