"""Rows of a data set as Parquet files, one computed and sorted at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import Table

from torchrec_xd.prepare.dataset import ORDER, SPLITS, DomainRows
from torchrec_xd.prepare.engine import PrepareSettings
from torchrec_xd.prepare.hashing import stable_hash
from torchrec_xd.prepare.manifest import SplitRows

ROW_GROUP_ROWS = 65_536


def write_domain(
    name: str, domain: DomainRows, folder: Path, settings: PrepareSettings, progress: Callable[[str], None]
) -> dict[str, SplitRows]:
    """Write `folder/<name>/<split>/part-NNNNN.parquet`; clusters of rows in pseudo-random order over all files.

    The rows pass through this process on either engine, so that both write the same types and even row groups.
    """
    cluster = stable_hash(domain.exposures, domain.cluster, settings.seed)
    row = stable_hash(domain.exposures, domain.key, settings.seed + 1)
    exposures = domain.exposures.mutate(**dict(zip(ORDER, (cluster, row), strict=True)))
    written = {}
    for split in SPLITS:
        rows = exposures.filter(exposures.split == split)
        parts = -(-int(rows.count().execute()) // settings.part_rows)
        files, positives = {}, 0
        for part in range(parts):
            path = Path(name, split, f"part-{part:05d}.parquet")
            table = _write(domain.features(rows.filter(rows[ORDER[0]] % parts == part)), folder / path)
            files[path.as_posix()] = table.num_rows
            positives += pc.sum(table[domain.label]).as_py() or 0
            progress(f"{path}: {table.num_rows:,} rows")
        written[split] = SplitRows(rows=sum(files.values()), positives=positives, files=files)
    return written


def _write(rows: Table, path: Path) -> pa.Table:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows.order_by(ORDER).drop(*ORDER).to_pyarrow()
    pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    return table
