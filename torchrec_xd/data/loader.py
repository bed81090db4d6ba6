"""Parquet files of all domains -> batches: shuffled, mixed, prefetched, each with its read position."""

from __future__ import annotations

import difflib
import math
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Annotated

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.agreement import FoundKind, agreed
from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.files import FileStamp, ParquetFiles
from torchrec_xd.data.limits import Range
from torchrec_xd.data.origin import Origin
from torchrec_xd.data.outages import DEFAULT_SECONDS, Patience
from torchrec_xd.data.phases import Phase, PhaseSettings, phases
from torchrec_xd.data.rows import Rows
from torchrec_xd.data.shards import RowGroup, Shard, ShardSpec, Window
from torchrec_xd.data.stamps import stamped_columns
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema, Split
from torchrec_xd.settings import Settings


class LoaderSettings(Settings):
    """How batches are cut from the files."""

    batch_size: PositiveInt = 4096
    """Rows per rank and step, all domains together (an epoch is cut evenly: one row more or less per domain)."""
    shuffle_rows: PositiveInt = 262_144
    """Rows per rank and domain that lie in memory and are shuffled among themselves; row groups are shuffled anyway."""
    mixing: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Relative share of each domain in a training epoch, {domain: share}. Default: every row once per epoch.
    An epoch keeps its number of rows; a domain's rows run on from epoch to epoch. Other splits are never mixed."""
    curriculum: tuple[PhaseSettings, ...] = ()
    """Phases that training begins with, each with shares of its own: `[{epochs: 1, shares: {feed: 1}}]` trains on
    domain `feed` alone in the first epoch. After them every row comes once per epoch. An epoch keeps its number of
    rows. Instead of `mixing`. An extension, in no paper."""
    prefetch: PositiveInt = 8
    """Batches kept ready by a background thread."""
    retry_s: float = Field(default=DEFAULT_SECONDS, ge=0, le=86_400)
    """Seconds that an object store that does not answer is asked again, before the run ends with exit code 75, which
    schedulers retry. With several processes at least 100 s less than `trainer.timeout_s`, as the others wait for the
    one that asks. May change on resume."""

    @property
    def patience(self) -> Patience:
        """The same for those who read."""
        return Patience(self.retry_s, "loader.retry_s")

    @model_validator(mode="after")
    def _one_of_two(self) -> LoaderSettings:
        if self.mixing is not None and self.curriculum:
            raise ValueError(
                "mixing and curriculum both say how much domains give; leave one out (mixing is a curriculum of one "
                "phase as long as training: [{epochs: EPOCHS, shares: MIXING}])"
            )
        return self


class Loader:
    """Batches of one split for one rank.

    With seed, rank and world size, a LoaderState determines all that follows: resuming reads nothing that is past.

    Args:
        schema: what the columns mean and where the files lie.
        settings: batch size, shuffling, mixing, prefetching.
        split: which files.
        share: rank, world size, seed, and whether to shuffle.
        labels: whether labels are read; if not they are NaN, and files need no label columns.
        extra: integer columns for metrics to slice by, -1 where null or absent; some file of the split has each.

    Raises:
        UserError: no domain has the split, a domain has no train rows, files are missing, unreadable or of a wrong
            type, statistics in their footers lead to a value that breaks a rule, a table's ids are integers here and
            strings there, or `mixing` or `curriculum` does not fit the domains. (A domain without the split gives no
            rows.)
        OutageError: the store does not answer.
    """

    def __init__(
        self,
        schema: Schema,
        settings: LoaderSettings,
        split: Split,
        share: ShardSpec = ShardSpec(),  # noqa: B008 - frozen
        *,
        labels: bool = True,
        extra: tuple[str, ...] = (),
    ):
        if not any(domain.paths(split) for domain in schema.domains.values()):
            raise UserError(
                f"no domain of schema '{schema.name}' has a '{split}' split; name its files for one of "
                f"{', '.join(schema.domains)} (domains: NAME: {split}: PATH), or use another split"
            )
        self._settings = settings
        self._domains = [
            _open_domain(schema, name, split, share, settings, labels=labels, extra=extra) for name in schema.domains
        ]
        self._names = tuple(schema.domains)
        _refuse_absent(extra, split, self._domains, schema)
        self.id_kinds: dict[str, FoundKind] = agreed(kind for domain in self._domains for kind in _id_kinds(domain))
        """For every hashed embedding table the first column that is looked up in it, and for users their own ("")."""
        for domain in self._domains:
            _refuse_bad_values(domain)
        self.collate = Collator(schema, len(extra))
        shards = {name: domain.shard for name, domain in zip(schema.domains, self._domains, strict=True)}
        mixing, curriculum = (settings.mixing, settings.curriculum) if split == "train" else (None, ())
        sources = [name for name, domain in schema.domains.items() if domain.role == "source"]
        self._phases = phases(shards, share, settings.batch_size, mixing=mixing, curriculum=curriculum, sources=sources)
        self.rows: int = sum(shard.total_rows for shard in shards.values())
        """Rows per epoch, over all ranks."""
        self.steps: int = self._phases[0].epoch_steps
        """Batches per epoch, the same on every rank."""
        self.smallest_batch: int = min(phase.smallest_batch for phase in self._phases)
        """No rank's batch has fewer rows."""

    def domains(self) -> Iterator[tuple[str, int, Mapping[str, Range]]]:
        """Every domain: its rows in the files, over all ranks, and what statistics say of its columns."""
        for name, domain in zip(self._names, self._domains, strict=True):
            yield name, domain.shard.total_rows, domain.files.ranges

    @property
    def users_are_strings(self) -> bool:
        """Whether batches hold hashes of the users."""
        return "" in self.id_kinds and self.id_kinds[""].kind == "strings"

    def stamps(self) -> dict[str, tuple[FileStamp, ...]]:
        """The files of every domain as they were when their footers were read."""
        schema = self.collate.schema
        return {
            name: domain.files.stamps(stamped_columns(schema, name))
            for name, domain in zip(self._names, self._domains, strict=True)
        }

    def even_out_weights(self) -> None:
        """From now on, bring the mean of every domain's row weights to about 1: they only compare rows of one domain.

        The mean is that of 16 row groups at most, the same on every rank: it decides how much a domain counts in the
        loss, and nothing that is learnt within it.

        Raises:
            UserError: a row group is damaged.
        """
        weight = self.collate.schema.weight
        means = [None if weight is None else domain.files.mean(weight) for domain in self._domains]
        self.collate.weight_scale = [1 / mean if mean and 0 < mean < math.inf else 1.0 for mean in means]

    def dropped(self) -> Counter[str]:
        """Ids that were left out of the batches so far, by column (`hash: drop`)."""
        return sum((domain.decoder.dropped for domain in self._domains), Counter())

    def label_counts(self) -> dict[str, tuple[int, int]]:
        """Task to how many rows with its label were read so far, and how many of them were positive."""
        return {
            task.name: (int(domain.decoder.labelled_T[i]), int(domain.decoder.positives_T[i]))
            for i, task in enumerate(self.collate.schema.tasks)
            for name, domain in zip(self._names, self._domains, strict=True)
            if name == task.domain
        }

    def batches(
        self,
        start: LoaderState = LoaderState(0, 0),  # noqa: B008 - frozen
        epochs: int = 1,
        *,
        pin: bool = False,
    ) -> Generator[Batch, None, None]:
        """Batches from `start` (an epoch and its steps already done) to the end of epoch `epochs - 1`.

        Close the iterator (or drop it) to stop early; what fails while reading is raised here.

        Args:
            start: where reading begins.
            epochs: how many there are.
            pin: put batches into pinned memory, from where copies to a GPU do not block; the reading thread does it.

        Raises:
            UserError: `start` lies beyond its epoch, or a value in a file breaks a rule.
            OutageError: the store does not answer.
        """
        if not 0 <= start.step <= self.steps:
            raise UserError(
                f"step {start.step} lies beyond the {self.steps} steps of an epoch: files, batch_size or the number of "
                "ranks have changed since that position was saved; restore them, or start at a whole epoch"
            )
        return _prefetched(self._read(start, epochs, pin), self._settings.prefetch)

    def sources(self, position: LoaderState, most: int = 10) -> list[str]:
        """Where the rows of a batch lie, as `FILE: rows FIRST to LAST`; shuffled rows lie anywhere among these."""
        batch = position.epoch * self.steps + position.step - 1
        phase = next(each for each in reversed(self._phases) if each.first_step <= batch)
        found = [
            f"{piece.row_group.file}: rows {piece.row_group.first_row + piece.start} to "
            f"{piece.row_group.first_row + piece.stop - 1}"
            for i, domain in enumerate(self._domains)
            for window in domain.shard.windows(phase.row_at(batch, i), phase.row_at(batch + 1, i))
            for piece in domain.shard.pieces(window)
        ]
        more = [f"and {len(found) - most} more row groups"] if len(found) > most else []
        return found[:most] + more

    def _read(self, start: LoaderState, epochs: int, pin: bool) -> Generator[Batch, None, None]:
        first, last = start.epoch * self.steps + start.step, epochs * self.steps
        pool = ThreadPoolExecutor(len(self._domains), thread_name_prefix="loader")
        ends = [*(phase.first_step for phase in self._phases[1:]), last]
        try:
            for phase, end in zip(self._phases, ends, strict=True):
                for step, parts in self._rows(pool, phase, max(first, phase.first_step), min(last, end)):
                    batch = self.collate(parts, LoaderState(step // self.steps, step % self.steps + 1))
                    yield batch.pin_memory() if pin else batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _rows(
        self, pool: ThreadPoolExecutor, phase: Phase, first: int, last: int
    ) -> Iterator[tuple[int, list[list[Rows]]]]:
        """Steps [first, last) of a phase, and the rows of every domain in each."""
        streams = [
            _Stream(domain, pool, phase.row_at(first, i), phase.row_at(last, i))
            for i, domain in enumerate(self._domains if first < last else [])
        ]
        for step in range(first, last):
            counts = [phase.row_at(step + 1, i) - phase.row_at(step, i) for i in range(len(streams))]
            yield step, [stream.take(count) for stream, count in zip(streams, counts, strict=True)]


@dataclass(frozen=True)
class _Domain:
    """The files of one domain, this rank's share of them, and how their columns are read."""

    files: ParquetFiles
    shard: Shard
    decoder: Decoder


def _open_domain(
    schema: Schema,
    name: str,
    split: Split,
    share: ShardSpec,
    settings: LoaderSettings,
    *,
    labels: bool,
    extra: tuple[str, ...],
) -> _Domain:
    paths = schema.domains[name].paths(split)
    decoder = Decoder(schema, name, labels=labels, extra=extra)
    files = ParquetFiles(paths, schema.root, decoder.check, decoder.limits, settings.patience)
    if split == "train" and not files.row_groups:
        raise UserError(
            f"domain '{name}': the train files hold no rows ({', '.join(paths)}); there is nothing to learn from"
        )
    return _Domain(files, Shard(name, files.row_groups, share, settings.shuffle_rows), decoder)


def _refuse_absent(extra: tuple[str, ...], split: Split, domains: list[_Domain], schema: Schema) -> None:
    """A column that no file has would only give empty slices."""
    there = sorted({name for domain in domains for found in domain.files.schemas for name in found.names})
    for column in extra if there else ():
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            named_by = "the schema's 'activity'" if column == schema.activity else "'metrics.slices' or a diagnostic"
            raise UserError(
                f"no file of the {split} split has the column '{column}', which {named_by} names{hint}; "
                f"columns there: {', '.join(there)}"
            )


def _id_kinds(domain: _Domain) -> Iterator[FoundKind]:
    for schema, file in domain.files.schemas.items():
        for table, column, kind in domain.decoder.id_kinds(schema):
            yield FoundKind(table, kind, column, file)


def _refuse_bad_values(domain: _Domain) -> None:
    """Decode the row groups that statistics make suspicious, so that a bad value is found before training."""
    read = domain.files.reader(domain.decoder.columns)
    for group in domain.files.doubtful:
        for _ in _decoded(read(group), domain.decoder, group.file, group.first_row):
            pass
    domain.decoder.reset_counts()  # these row groups are read once more


def _decoded(table: pa.Table, decoder: Decoder, file: str, first_row: int) -> Iterator[Rows]:
    for batch in table.to_batches():
        yield decoder.decode(batch, Origin(file, first_row))
        first_row += batch.num_rows


class _Stream:
    """The rows of one domain from `start` to `stop`, taken front to back."""

    def __init__(self, domain: _Domain, pool: ThreadPoolExecutor, start: int, stop: int):
        self._parts = _read_ahead(_WindowReader(domain), domain.shard.windows(start, stop), pool)
        self._part: Rows | None = None
        self._at = 0
        self._past = start - domain.shard.window_at(start).first if start < stop else 0

    def take(self, count: int) -> list[Rows]:
        """The next `count` rows."""
        if self._past:  # left until now, so that the first windows of all streams are read at the same time
            past, self._past = self._past, 0
            self.take(past)
        taken = []
        while count:
            if self._part is None or self._at == len(self._part):
                self._part, self._at = next(self._parts), 0
            stop = min(self._at + count, len(self._part))
            taken.append(self._part.slice(self._at, stop))
            count -= stop - self._at
            self._at = stop
        return taken


def _read_ahead(reader: _WindowReader, windows: Iterator[Window], pool: ThreadPoolExecutor) -> Iterator[Rows]:
    """The rows of each window; the first is read at once, every other while the one before it is cut into batches."""
    loading = (pool.submit(reader.read, window) for window in windows)
    return _loaded(loading, next(loading, None))


def _loaded(loading: Iterator[Future[list[Rows]]], first: Future[list[Rows]] | None) -> Iterator[Rows]:
    future = first
    del first  # else the first window would be held to the end
    while future is not None:
        parts = future.result()
        future = next(loading, None)
        yield from parts


class _WindowReader:
    """Reads, converts and checks windows of one domain, one after the other."""

    def __init__(self, domain: _Domain):
        self._domain = domain
        self._read_row_group = domain.files.reader(domain.decoder.columns)
        self._last: tuple[RowGroup, pa.Table] | None = None

    def read(self, window: Window) -> list[Rows]:
        """The rows of a window, in their order."""
        parts: list[Rows] = []
        for piece in self._domain.shard.pieces(window):
            table = self._table(piece.row_group).slice(piece.start, piece.stop - piece.start)
            first_row = piece.row_group.first_row + piece.start
            parts += _decoded(table, self._domain.decoder, piece.row_group.file, first_row)
        order = self._domain.shard.order(window)
        return parts if order is None else [Rows.gather(parts, order, self._domain.decoder.id_types)]

    def _table(self, row_group: RowGroup) -> pa.Table:
        """The row group; the last one is kept, as a large one spans several windows."""
        if self._last is None or self._last[0] != row_group:
            self._last = None  # only what windows still look into stays in memory with the next one
            self._last = (row_group, self._read_row_group(row_group))
        return self._last[1]


def _prefetched(source: Generator[Batch, None, None], depth: int) -> Generator[Batch, None, None]:
    """`source`, run by a thread that stays `depth` batches ahead; it ends with its consumer and raises there."""
    ready: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
    slots = threading.Semaphore(depth)
    stop = threading.Event()

    def produce() -> None:
        with closing(source):
            try:
                while slots.acquire() and not stop.is_set():
                    batch = next(source, None)
                    ready.put(batch)
                    if batch is None:
                        break
            except BaseException as error:
                ready.put(error)

    thread = threading.Thread(target=produce, name="loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slots.release()
            yield item
    finally:
        stop.set()
        slots.release()
        thread.join()
