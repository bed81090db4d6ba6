"""Files in the layouts of known data sets, with made-up content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RANDOM = np.random.default_rng(0)
FIRST = 1_650_000_000
"""Seconds since 1970, in April 2022."""


def lines(path: Path, header: str | None, rows: list[list[object]], separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [separator.join(str(value) for value in row) for row in rows]
    path.write_text("\n".join([*([] if header is None else [header]), *texts]) + "\n", encoding="utf-8")


def integers(low: int, high: int, rows: int) -> list[int]:
    return RANDOM.integers(low, high, rows).tolist()


def ratings(rows: int = 600) -> list[list[object]]:
    """User, item, rating, seconds: in no order of time, as in ml-100k."""
    times = RANDOM.permutation(rows) * 9000 + FIRST
    columns = zip(integers(1, 60, rows), integers(1, 40, rows), integers(1, 6, rows), times, strict=True)
    return [list(row) for row in columns]


def recbole(folder: Path, name: str, rows: int = 600) -> None:
    """As in RecBole's wheel: recbole/dataset_example/ml-100k."""
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines(folder / f"{name}.inter", header, ratings(rows), "\t")
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    genres = ["Action", "Comedy", "Drama", "Sci-Fi"]
    items = [[i, f"Film Number {i}", 1950 + i, " ".join(genres[: 1 + i % 4])] for i in range(1, 41)]
    lines(folder / f"{name}.item", header, items, "\t")
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"
    users = [[i, 20 + i % 9, "MF"[i % 2], ["artist", "other"][i % 2], f"{i % 20:05d}"] for i in range(1, 61)]
    lines(folder / f"{name}.user", header, users, "\t")
