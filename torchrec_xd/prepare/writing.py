"""The rows of a domain as the Parquet files that training reads, a bucket of users at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ibis.expr.types import IntegerValue, Table, Value

from torchrec_xd.prepare.assembly import Assembler
from torchrec_xd.prepare.engine import count_rows
from torchrec_xd.prepare.hashing import mix_of
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
        return tables.parquet(place if bucket is None else place / f"_bucket={bucket}")

    def rows_of(bucket: int | None) -> Table:
        events = cache(lambda name: part(folder / "events" / name, bucket))
        rows = part(folder / "rows" / domain, bucket)
        rows, features = assemble(domain, rows, events, [part(place, bucket) for place in known])
        columns = _columns(run, rows, domain) | features
        order = rows._order if run.labels else rows._row  # rows to score stay in the order of the input
        return rows.select("_split", _order=order, _tie=_tie(run, columns), _bucket=rows._row % run.buckets, **columns)

    if tables.spark is not None:
        rows = rows_of(None)
        tables.write_splits(rows, out / domain, run.buckets, SPLITS)
        return
    for bucket in range(run.buckets):
        if not (folder / "rows" / domain / f"_bucket={bucket}").is_dir():
            continue
        begun = time.monotonic()
        rows = tables.temporary("_rows_of_bucket", rows_of(bucket))
        for number, split in enumerate(SPLITS):
            own = (
                rows.filter(rows._split == number)
                .order_by("_order", "_tie")
                .drop("_split", "_order", "_tie", "_bucket")
            )
            tables.write_part(own, out / domain / split / f"part-{bucket:05d}.parquet")
        run.stages.done(f"{domain}: {bucket + 1} of {run.buckets} parts written", count_rows(rows), begun)


def _columns(run: Preparation, rows: Table, domain: str) -> dict[str, Value]:
    """The columns of a file that are no features: user, time, labels, weight, what is kept."""
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
    if recipe.activity is not None:
        columns["activity"] = rows.t_activity.cast("int32")
    # next to rows to score raw values may be called like features
    return columns | {name if run.labels else f"k_{name}": rows[f"k_{name}"] for name in own.keep}


def _tie(run: Preparation, columns: Mapping[str, Value]) -> IntegerValue:
    """A hash of ids and labels: what orders the rows of a user and moment, alike on every engine."""
    whole = [value for name, value in columns.items() if name != "user" and value.type().is_integer()]
    return mix_of([run.tables.number(value) for value in whole])


def is_weighted(recipe: Recipe) -> bool:
    """Whether rows have weights."""
    return any(domain.weight is not None or domain.keep_negatives < 1 for domain in recipe.domains.values())
