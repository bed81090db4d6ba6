"""Files of rows to a file of predictions, by an artefact: what `score` does, without torch.

Shape legend: B rows, T tasks and further scores.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from torchrec_xd.data.agreement import FoundKind, agreed
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.predictions import KeptColumns, PredictionColumns, PredictionWriter, check_output, scratch_folder
from torchrec_xd.data.rows import Floats, Integers
from torchrec_xd.data.shards import RowGroup
from torchrec_xd.errors import UserError
from torchrec_xd.serving.artifact import GATE, Artifact, find_artifact
from torchrec_xd.serving.scorer import Scorer

logger = logging.getLogger(__name__)
_CHUNK = 4096
"""Rows that are scored at a time."""
_AHEAD = 4
"""Row groups per process that are given out before the first is written."""
UnseenIds = Literal["refuse", "drop"]


@dataclass(frozen=True)
class ScoreOptions:
    """What is written, and how rows are read: as of `score`."""

    parts: bool = False
    """Also `score_<name>`, untruncated, for each output."""
    keep: Mapping[str, str] | None = None
    """Columns of the rows that are written too -> their names."""
    unseen_ids: UnseenIds = "refuse"
    """`drop` leaves ids out that lie outside their tables, and warns with their number."""
    workers: int = 1
    """Processes that score."""


def score_by_artifact(
    place: str | Path,
    rows: str | Path,
    output: str | Path,
    options: ScoreOptions = ScoreOptions(),
) -> int:
    """Write an artefact's predictions for prepared rows of its domain; returns their number.

    Columns are those of `score`: the user, those of `keep`, `prob_<task>`, and with `parts` `score_<name>`.

    Args:
        place: `--out` of an export, whose current version scores, or one of its versions.
        rows: Parquet file, folder or glob.
        output: the file to write, whole or not at all.
        options: what is written.

    Raises:
        UserError: no whole artefact, or rows that do not fit its schema; nothing is written.
    """
    check_output(output)
    artifact = Artifact.open(find_artifact(Path(place)))
    paths = [str(rows) if "://" in str(rows) else str(Path(rows).absolute())]
    own = _Rows(artifact, options.unseen_ids)
    files = ParquetFiles(paths, ".", own.decoder.check)
    strings = own.users_are_strings(files)
    keep = options.keep or {}
    kept = KeptColumns(paths, ".", tuple(keep), artifact.schema.user if strings else None, keep)
    # Gates are for the server's answers: a run's own `score` has none.
    scores = tuple(n for n in artifact.manifest.outputs if options.parts and not n.startswith(GATE))
    columns = PredictionColumns(artifact.schema.user, artifact.manifest.tasks, scores, kept.fields, strings)
    names = [*artifact.manifest.tasks, *scores]
    dropped: Counter[str] = Counter()
    with PredictionWriter(output, columns) as writer:
        count = 0
        for user_B, score_TB, left_out in _scored(own, files, names, options.workers):
            count += writer.write(columns.table(user_B, score_TB, kept.take(len(user_B))))
            dropped += left_out
    if dropped:
        counts = ", ".join(f"{number:,} of '{column}'" for column, number in dropped.items())
        logger.warning("ids outside their tables were left out: %s", counts)
    return count


def score_raw_by_artifact(
    place: str | Path,
    raw: str,
    output: str | Path,
    options: ScoreOptions,
    inputs: Mapping[str, str],
    say: Callable[[str], None] = logger.warning,
) -> int:
    """The same for raw rows, which look as a recipe's inputs, by the encoders that the run had: as of `score_raw`.

    Args:
        place: as above.
        raw: file, folder or glob, in a format that recipes read.
        output: the file to write.
        options: `keep` names further columns of the raw rows.
        inputs: input of the recipe to the files that are read instead, for lookups and events.
        say: told how many rows have no prediction, and how many values no row of their own.

    Raises:
        UserError: the artefact has no encoders, or what `encode_raw_rows` and `score_by_artifact` raise.
    """
    # It brings the engines of recipes, which nothing else of serving needs.
    from torchrec_xd.prepare.raw_rows import encode_raw_rows  # noqa: PLC0415

    check_output(output)
    artifact = Artifact.open(find_artifact(Path(place)))
    if artifact.encoders is None:
        raise UserError(
            f"{place}: keeps no encoders, as the run's data were not made by 'prepare RECIPE'; score prepared rows, "
            "without --raw"
        )
    with tempfile.TemporaryDirectory(dir=scratch_folder(output), prefix=".score") as folder:
        domain, keep = artifact.manifest.domain, tuple(options.keep or ())
        rows = encode_raw_rows(artifact.encoders, raw, domain, Path(folder), inputs=inputs, keep=keep)
        count = score_by_artifact(artifact.folder, rows.path, output, replace(options, keep=rows.kept))
    for remark in rows.remarks():
        say(remark)
    return count


class _Rows:
    """How rows of an artefact's domain are read, and what they become."""

    def __init__(self, artifact: Artifact, unseen_ids: UnseenIds) -> None:
        schema = artifact.schema.dropping_unseen_ids() if unseen_ids == "drop" else artifact.schema
        self.artifact, self.unseen_ids = artifact, unseen_ids
        self.decoder = Decoder(schema, artifact.manifest.domain, labels=False, extra=())

    def users_are_strings(self, files: ParquetFiles) -> bool:
        """Whether users are strings.

        Raises:
            UserError: users or hashed ids are of another type than in training, or differ between files.
        """
        trained = self.artifact.manifest.id_kinds.items()
        kinds = [FoundKind(table, kind, table.removeprefix("t_") or "user", "training") for table, kind in trained]
        for schema, file in files.schemas.items():
            kinds += [FoundKind(table, kind, column, file) for table, column, kind in self.decoder.id_kinds(schema)]
        users = agreed(kinds).get("")
        return users is not None and users.kind == "strings"

    def scored(self, table: pa.Table, group: RowGroup, scorer: Scorer, names: Sequence[str]) -> _Scored:
        """Users, scores and ids left out, of a row group."""
        self.decoder.reset_counts()
        users, scores = [np.zeros(0, dtype=np.int64)], [np.zeros((len(names), 0), dtype=np.float32)]
        first = group.first_row
        for batch in table.combine_chunks().to_batches(max_chunksize=_CHUNK):
            rows = self.decoder.decode(batch, Origin(group.file, first))
            found = scorer.score(rows)
            users.append(rows.user_B)
            scores.append(np.stack([found[name] for name in names]))
            first += len(rows)
        return np.concatenate(users), np.concatenate(scores, axis=1), +self.decoder.dropped


_Scored = tuple[Integers, Floats, Counter[str]]
"""Users `[B]`, scores `[T, B]`, ids that were left out by column."""


def _scored(rows: _Rows, files: ParquetFiles, names: Sequence[str], workers: int) -> Iterator[_Scored]:
    """Every row group in its order."""
    if workers == 1:
        scorer, read = Scorer(rows.artifact), files.reader(rows.decoder.columns)
        yield from (rows.scored(read(group), group, scorer, names) for group in files.row_groups)
        return
    context = multiprocessing.get_context("spawn")
    begin = (rows.artifact, rows.unseen_ids, files)
    with ProcessPoolExecutor(workers, context, _begin, begin) as pool:
        waiting: deque[Future[_Scored]] = deque()
        for group in files.row_groups:
            waiting.append(pool.submit(_work, group, tuple(names)))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Worker:
    """What a process of several keeps from row group to row group."""

    rows: _Rows
    scorer: Scorer
    read: ClassVar[Callable[[RowGroup], pa.Table]]


def _begin(artifact: Artifact, unseen_ids: UnseenIds, files: ParquetFiles) -> None:
    _Worker.rows, _Worker.scorer = _Rows(artifact, unseen_ids), Scorer(artifact)
    _Worker.read = staticmethod(files.reader(_Worker.rows.decoder.columns))


def _work(group: RowGroup, names: Sequence[str]) -> _Scored:
    return _Worker.rows.scored(_Worker.read(group), group, _Worker.scorer, names)
