"""`prepare`: raw logs to rows that models read, by a recipe; rows per second and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer
import yaml

from torchrec_xd.benchmark.measure import Json, Result

MILLION = 1_000_000
PART_ROWS = 5 * MILLION
"""Rows of a raw file."""
COUNTS, NUMBERS = 6, 5
"""Columns of small integers, and of floats."""


def prepare(
    rows: Annotated[list[int] | None, typer.Option(help="Rows of the log; may be repeated.")] = None,
    memory_gb: Annotated[float, typer.Option(help="DuckDB's buffers.")] = 3.5,
    threads: Annotated[int, typer.Option(min=1, help="DuckDB's threads.")] = 2,
    out: Json = None,
) -> None:
    """25 features, 2 histories, 4 totals, vocabularies of up to 10^6; one user and one item have 5 % of the rows."""
    result = Result("prepare", {"features": 25, "memory_limit_gb": memory_gb, "threads": threads})
    for count in rows or [MILLION, 5 * MILLION, 20 * MILLION]:
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=Path.cwd()) as folder:
            root = Path(folder)
            write_log(root / "log", count)
            recipe = root / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(log_recipe(root, memory_gb, threads)), encoding="utf-8")
            learnt = _run(recipe, root / "data")
            encoded = _run(recipe, root / "again", "--encoders", str(root / "data"))
        for what, (seconds, peak) in {"learn and write": learnt, "with stored encoders": encoded}.items():
            result.rows.append(
                {"what": f"{count:,} rows, {what}", "seconds": seconds, "rows/s": count / seconds, "peak GB": peak}
            )
    result.report(out)


def write_log(folder: Path, rows: int) -> None:
    """A log of impressions as Parquet, drawn by DuckDB; most ids are rare, user 0 and item 0 have 5 % of the rows."""
    folder.mkdir(parents=True)
    small = ", ".join(f"(hash(i + {20 + k}) % {10 + 7 * k})::INT AS a{k}" for k in range(COUNTS))
    floats = ", ".join(f"((hash(i + {40 + k}) % 100000) / 1000.0)::FLOAT AS d{k}" for k in range(NUMBERS))
    with duckdb.connect() as connection:
        for part, first in enumerate(range(0, rows, PART_ROWS)):
            query = f"""
                SELECT
                    CASE WHEN hash(i) % 20 = 0 THEN 0 ELSE {_rare("i + 1", max(rows // 16, 1000), 2)} END AS user_id,
                    CASE WHEN hash(i + 2) % 20 = 0 THEN 0 ELSE {_rare("i + 3", MILLION, 3)} END AS item_id,
                    'b' || {_rare("i + 4", MILLION, 2)} AS brand,
                    'q' || (hash(i + 5) % {MILLION}) AS query,
                    (hash(i + 6) % 1000)::INT AS category,
                    TIMESTAMP '2024-05-01' + to_seconds((hash(i + 7) % 2592000)::INT) AS ts,
                    (hash(i + 8) % 10 = 0)::INT AS clicked,
                    {small}, {floats}
                FROM range({first}, {min(first + PART_ROWS, rows)}) t(i)"""
            connection.sql(f"COPY ({query}) TO '{folder / f'part-{part}.parquet'}' (FORMAT parquet)")


def _rare(seed: str, count: int, power: int) -> str:
    """A number in [0, count), the larger the rarer."""
    return f"(pow((hash({seed}) % 1000003) / 1000003.0, {power}) * {count})::BIGINT"


def log_recipe(root: Path, memory_gb: float, threads: int) -> dict[str, Any]:
    """The recipe of the log below `root`."""

    def total(column: str, what: str, by: list[str], top: int | None, **more: Any) -> dict[str, Any]:
        way: dict[str, Any] = {"kind": "dense"} if top is None else {"kind": "id", "log_buckets": top}
        return {"column": column, "group": "shared", **way, "total": {"events": "log", "what": what, "by": by, **more}}

    def history(value: str, **more: str) -> dict[str, Any]:
        made = {"events": "log", "value": value, **more}
        return {
            "column": f"last_{value}",
            "kind": "sequence",
            "group": "sequence",
            "table": value,
            "length": 20,
            "history": made,
        }

    def shared(column: str, kind: str = "id", **more: Any) -> dict[str, Any]:
        return {"column": column, "kind": kind, "group": "shared", **more}

    return {
        "name": "benchmark",
        "root": str(root),
        "inputs": {"log": "log"},
        "domains": {
            "feed": {"role": "target", "rows": "log", "user": "user_id", "time": "ts", "labels": {"click": "clicked"}}
        },
        "events": {"log": {"rows": "log", "user": "user_id", "time": "ts"}},
        "features": [
            {"column": "user_id", "kind": "id", "group": "user"},
            *(shared(column) for column in ("item_id", "brand", "query", "category", "a0", "a1", "a2")),
            shared("a3", as_is=100),
            shared("a4", as_is=100),
            shared("a5", buckets=[10, 20, 30, 40]),
            shared("d0", "dense", standard=True),
            shared("d1", "dense", log1p=True, standard=True),
            shared("d2", "dense", missing="mean"),
            shared("d3", quantiles=20),
            shared("d4", "dense", clip=[0, 50]),
            *({"column": part, "kind": "id", "group": "context", "calendar": part} for part in ("hour", "weekday")),
            history("item_id", where="ts > TIMESTAMP '2024-05-01 01:00:00'"),
            history("category"),
            total("user_count", "count", ["user"], 128, days=7),
            total("user_share", "share", ["user"], None, value="a0"),
            total("item_count", "count", ["item_id"], 4096),
            total("user_category", "sum", ["user", "category"], 64, value="a1"),
        ],
        "split": {"valid": "2024-05-25", "test": "2024-05-28"},
        "engine": {"duckdb": {"memory_limit_gb": memory_gb, "threads": threads}},
    }


def _run(recipe: Path, out: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command of its own."""
    command = [sys.executable, "-m", "torchrec_xd.cli", "prepare", str(recipe), "--out", str(out), *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"prepare ended with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9
