"""A planted world as Parquet files: drawn chunk by chunk, a chunk a row group, a file a thread.

Shape legend: R test rows of a domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.datasets.planted.population import Array
from torchrec_xd.datasets.planted.rows import CLICK, USER, World
from torchrec_xd.datasets.planted.settings import SPLITS, WorldSettings
from torchrec_xd.evaluation.row_quantities import auc_by_user, log_losses
from torchrec_xd.prepare.manifest import SplitRows

Columns = Mapping[str, "Array | pa.Array"]
Written = tuple[dict[str, dict[str, SplitRows]], dict[str, dict[str, float]]]
"""What lies where, by domain and split; and per task the metrics of the true probabilities on the test rows."""


@dataclass(frozen=True)
class _File:
    path: str
    domain: int
    split: str
    first_chunk: int
    rows: int


@dataclass(frozen=True)
class _FileRows:
    positives: int
    tested: tuple[dict[str, Array], ...]
    """Of a test file, per row group: what the oracle is computed from."""


def write_world(world: World, settings: WorldSettings, folder: Path, progress: Callable[[str], None]) -> Written:
    """Write `folder/<domain>/<split>/part-NNNNN.parquet`."""
    files = list(_files(settings))
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="world")
    written = {}
    try:
        for file, result in zip(
            files, pool.map(lambda file: _write(file, world, settings, folder), files), strict=True
        ):
            written[file.path] = result
            progress(f"{file.path}: {file.rows:,} rows")
    finally:
        pool.shutdown(cancel_futures=True)
    splits = {
        name: {split: _split_rows([f for f in files if (f.domain, f.split) == (d, split)], written) for split in SPLITS}
        for d, name in enumerate(settings.names)
    }
    return splits, _oracle(world, settings, files, written)


def _files(settings: WorldSettings) -> Iterator[_File]:
    most = settings.row_group_rows * settings.row_groups_per_file
    for domain, name in enumerate(settings.names):
        for split in SPLITS:
            rows = settings.rows(domain, split)
            for part, start in enumerate(range(0, rows, most)):
                path = f"{name}/{split}/part-{part:05d}.parquet"
                yield _File(path, domain, split, part * settings.row_groups_per_file, min(most, rows - start))


def _write(file: _File, world: World, settings: WorldSettings, folder: Path) -> _FileRows:
    truth = {task.label: prob for task, prob in world.tasks.items() if task.domain == settings.names[file.domain]}
    positives, tested = 0, []

    def chunks() -> Iterator[Columns]:
        nonlocal positives
        for number, start in enumerate(range(0, file.rows, settings.row_group_rows)):
            count = min(settings.row_group_rows, file.rows - start)
            columns = world.columns(file.domain, file.split, file.first_chunk + number, count)
            positives += int(np.count_nonzero(columns[CLICK]))
            if file.split == "test":
                tested.append({name: np.asarray(columns[name]) for name in (USER, *truth, *truth.values())})
            yield columns

    write_row_groups(folder / file.path, chunks())
    return _FileRows(positives, tuple(tested))


def write_row_groups(path: Path, chunks: Iterable[Columns]) -> None:
    """A Parquet file of which every chunk of rows is a row group; there is one at least."""
    writer = None
    try:
        for columns in chunks:
            table = pa.table(dict(columns))
            if writer is None:
                floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
                ids = [name for name in table.column_names if name not in floats]
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=ids)
            writer.write_table(table, row_group_size=table.num_rows)
    finally:
        if writer is not None:
            writer.close()


def _split_rows(files: list[_File], written: dict[str, _FileRows]) -> SplitRows:
    return SplitRows(
        rows=sum(file.rows for file in files),
        positives=sum(written[file.path].positives for file in files),
        files={file.path: file.rows for file in files},
    )


def _oracle(
    world: World, settings: WorldSettings, files: list[_File], written: dict[str, _FileRows]
) -> dict[str, dict[str, float]]:
    oracle = {}
    for task, prob in world.tasks.items():
        domain = settings.names.index(task.domain)
        groups = [group for file in files if file.domain == domain for group in written[file.path].tested]
        columns = (np.concatenate([group[name] for group in groups]) for name in (prob, task.label, USER))
        oracle[task.name] = oracle_metrics(*columns)
    return oracle


def oracle_metrics(prob_R: Array, label_R: Array, user_R: Array) -> dict[str, float]:
    """`auc`, `gauc` (weighted by impressions) and `logloss` of the true probabilities; undefined ones are left out."""
    order = np.argsort(prob_R)
    prob_R, label_R, user_R = prob_R[order], label_R[order], user_R[order]
    ones_R = np.ones(len(prob_R))
    _, auc, _ = auc_by_user(prob_R, label_R, np.zeros_like(user_R), ones_R)
    _, auc_U, rows_U = auc_by_user(prob_R, label_R, user_R, ones_R)
    known_U = ~np.isnan(auc_U)
    metrics = {"logloss": float(log_losses(prob_R, label_R).mean())}
    if known_U.any():
        metrics["gauc"] = float(np.average(auc_U[known_U], weights=rows_U[known_U]))
    if not np.isnan(auc[0]):
        metrics["auc"] = float(auc[0])
    return metrics
