"""Rows of a data set as Parquet files, one computed and sorted at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from torchrec_xd.datasets.pipeline.dataset import ORDER, SPLITS, DomainRows
from torchrec_xd.prepare.engine import count_rows
from torchrec_xd.prepare.engine_settings import FileSettings
from torchrec_xd.prepare.hashing import stable_hash
from torchrec_xd.prepare.manifest import SplitRows

ROW_GROUP_ROWS = 65_536


def write_domain(
    name: str, domain: DomainRows, folder: Path, settings: FileSettings, progress: Callable[[str], None]
) -> dict[str, SplitRows]:
    """Write `folder/<name>/<split>/part-NNNNN.parquet`; clusters of rows in pseudo-random order over all files.

    The rows pass through this process on either engine, so that both write the same types and even row groups.
    """
    part_of = _part_reader(domain, settings.seed)
    written = {}
    for split in SPLITS:
        count = count_rows(domain.exposures.filter(domain.exposures.split == split))
        parts = -(-count // settings.part_rows)
        files, positives = {}, 0
        for part in range(parts):
            path = Path(name, split, f"part-{part:05d}.parquet")
            table = part_of(split, parts, part)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / path, row_group_size=ROW_GROUP_ROWS, compression="zstd")
            files[path.as_posix()] = table.num_rows
            positives += pc.sum(table[domain.label]).as_py() or 0
            progress(f"{path}: {table.num_rows:,} rows")
        written[split] = SplitRows(rows=sum(files.values()), positives=positives, files=files)
    return written


def _part_reader(domain: DomainRows, seed: int) -> Callable[[str, int, int], pa.Table]:
    """A function of (split, number of parts, part) that computes a part's sorted rows; built once, run for each."""
    hashes = (stable_hash(domain.exposures, domain.cluster, seed), stable_hash(domain.exposures, domain.key, seed + 1))
    exposures = domain.exposures.mutate(**dict(zip(ORDER, hashes, strict=True)))
    split, parts, part = ibis.param("string"), ibis.param("int64"), ibis.param("int64")
    chosen = exposures.filter(exposures.split == split, exposures[ORDER[0]] % parts == part)
    rows = domain.features(chosen).order_by(ORDER).drop(*ORDER)
    return lambda *values: rows.to_pyarrow(params=dict(zip((split, parts, part), values, strict=True)))
