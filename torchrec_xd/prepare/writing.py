"""The rows of a domain as the Parquet files that training reads, a bucket of users at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import ibis
from ibis.expr.types import Table, Value

from torchrec_xd.prepare.assembly import Assembler, order_of
from torchrec_xd.prepare.recipe import Recipe
from torchrec_xd.prepare.rows import SPLITS

if TYPE_CHECKING:
    from torchrec_xd.prepare.execution import Preparation


def write_rows(run: Preparation, assemble: Assembler, domain: str, known: Sequence[Path], out: Path) -> None:
    """Write `out/DOMAIN/SPLIT/*.parquet`.

    DuckDB assembles one bucket of users after the other, which bounds its memory; Spark all at once, on its executors.

    Args:
        run: with rows and events in buckets.
        assemble: makes the columns.
        domain: whose rows.
        known: folders of totals that are computed already, in buckets.
        out: folder.
    """
    tables, folder = run.tables, run.stages.folder

    def part(place: Path, bucket: int | None) -> Table:
        if bucket is None:
            return tables.parquet(place).drop("_bucket")
        return tables.parquet(place / f"_bucket={bucket}")

    def rows_of(bucket: int | None) -> Table:
        events = cache(lambda name: part(folder / "events" / name, bucket))
        rows = part(folder / "rows" / domain, bucket)
        return assemble(domain, rows, events, [part(place, bucket) for place in known])

    if tables.spark is not None:
        rows = rows_of(None)
        bucket_of = (rows._row % run.buckets).cast("int32")
        place = ibis.struct({f"o{number:02d}": key for number, key in enumerate(order_of(rows))})
        rows = rows.select("_split", _bucket=bucket_of, _place=place, **written(run, rows, domain))
        tables.write_splits(rows, out / domain, run.buckets, SPLITS)
        return
    for bucket in range(run.buckets):
        if not (folder / "rows" / domain / f"_bucket={bucket}").is_dir():
            continue
        rows = tables.temporary("_rows_of_bucket", rows_of(bucket))
        columns = written(run, rows, domain)
        for number, split in enumerate(SPLITS):
            path = out / domain / split / f"part-{bucket:05d}.parquet"
            own = rows.filter(rows._split == number).order_by(order_of(rows))
            tables.write_part(own.select(**columns), path)
        run.stages.progress(f"{domain}: {bucket + 1} of {run.buckets} parts written")


def written(run: Preparation, rows: Table, domain: str) -> dict[str, Value]:
    """The columns of a file: user, time, labels, weight, what is kept, features."""
    recipe = run.file.recipe
    own = recipe.domains[domain]
    user = rows._user if rows._user.type().is_string() else rows._user.cast("int64")
    columns: dict[str, Value] = {"user": user}
    if own.time is not None:
        columns["time"] = rows._time
    if run.labels:
        columns |= {label: rows[f"l_{label}"] for label in own.labels}
    if is_weighted(recipe):
        columns["weight"] = rows._weight.cast("float32")
    if recipe.cold_users:
        columns["cold"] = rows.cold
    columns |= {name: rows[f"k_{name}"] for name in own.keep}
    for name in rows.columns:
        if name.startswith("f_"):
            columns[name.removeprefix("f_")] = rows[name]
    return columns


def is_weighted(recipe: Recipe) -> bool:
    """Whether rows have weights."""
    return any(domain.weight is not None or domain.keep_negatives < 1 for domain in recipe.domains.values())
