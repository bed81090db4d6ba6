"""Parquet files of all domains -> batches: shuffled, mixed, prefetched, each with its read position."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Annotated

import pyarrow as pa
from pydantic import Field, PositiveInt

from torchrec_xd.batch import Batch, Position
from torchrec_xd.data.arrow import Decoder, Origin
from torchrec_xd.data.collate import Collator, Rows
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.shards import RowGroup, Shard, Share, Window, mixed_rows
from torchrec_xd.schema import Schema, Split
from torchrec_xd.settings import Settings, UserError


class LoaderSettings(Settings):
    """How batches are cut from the files."""

    batch_size: PositiveInt = 4096
    """Rows per rank and step, all domains together (an epoch is cut evenly: one row more or less per domain)."""
    shuffle_rows: PositiveInt = 262_144
    """Rows per rank and domain that lie in memory and are shuffled among themselves; row groups are shuffled anyway."""
    mixing: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Relative share of each domain in a training epoch, {domain: share}; unless told, every row once per epoch.
    An epoch keeps its number of rows; a domain's rows run on from epoch to epoch. Other splits are never mixed."""
    prefetch: PositiveInt = 8
    """Batches kept ready by a background thread."""


class Loader:
    """Batches of one split for one rank.

    With (seed, rank, world size), a Position says everything about what follows: resuming reads nothing that is past.

    Args:
        schema: what the columns mean and where the files lie.
        settings: batch size, shuffling, mixing, prefetching.
        split: which files.
        share: rank, world size, seed, and whether to shuffle.
        labels: whether labels are read; if not they are NaN, and files need no label columns.
        extra: integer columns for metrics to slice by, -1 where null or absent.

    Raises:
        UserError: a domain lacks the split or (train only) any row, files are missing, unreadable or of a wrong type,
            or `mixing` does not fit the domains.
    """

    def __init__(
        self,
        schema: Schema,
        settings: LoaderSettings,
        split: Split,
        share: Share = Share(),  # noqa: B008 - frozen
        *,
        labels: bool = True,
        extra: tuple[str, ...] = (),
    ):
        self._settings = settings
        self._domains = [
            _open_domain(schema, name, split, share, labels=labels, extra=extra, window_rows=settings.shuffle_rows)
            for name in schema.domains
        ]
        self._collate = Collator(schema, len(extra))
        totals = {name: domain.shard.total_rows for name, domain in zip(schema.domains, self._domains, strict=True)}
        epoch_rows = totals
        if settings.mixing is not None and split == "train":
            epoch_rows = mixed_rows(totals, settings.mixing, share.world_size)
        self.rows: int = sum(epoch_rows.values())
        """Rows per epoch, over all ranks."""
        self.steps: int = -(-self.rows // (share.world_size * settings.batch_size))
        """Batches per epoch, the same on every rank."""
        parts = [share.of(rows) for rows in epoch_rows.values()]
        self._epoch_rows = [stop - start for start, stop in parts]

    def batches(self, start: Position = Position(0, 0), epochs: int = 1) -> Iterator[Batch]:  # noqa: B008 - frozen
        """Batches from `start` (an epoch and its steps already done) to the end of epoch `epochs - 1`.

        Close the iterator (or drop it) to stop early; what fails while reading is raised here.

        Raises:
            UserError: `start` lies beyond its epoch, or a value in a file breaks a rule.
        """
        if not 0 <= start.step <= self.steps:
            raise UserError(
                f"step {start.step} lies beyond the {self.steps} steps of an epoch: files, batch_size or the number of "
                "ranks have changed since that position was saved; restore them, or start at a whole epoch"
            )
        return _prefetched(self._read(start, epochs), self._settings.prefetch)

    def _read(self, start: Position, epochs: int) -> Generator[Batch, None, None]:
        first, last = start.epoch * self.steps + start.step, epochs * self.steps
        pool = ThreadPoolExecutor(max_workers=1)
        try:
            streams = [
                _Stream(domain, pool, stop=epochs * rows)
                for domain, rows in zip(self._domains, self._epoch_rows, strict=True)
            ]
            for step in range(first, last):
                parts = [
                    stream.read(step * rows // self.steps, (step + 1) * rows // self.steps)
                    for stream, rows in zip(streams, self._epoch_rows, strict=True)
                ]
                yield self._collate(parts, Position(step // self.steps, step % self.steps + 1))
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Domain:
    """The files of one domain, this rank's share of them, and how their columns are read."""

    files: ParquetFiles
    shard: Shard
    decoder: Decoder


def _open_domain(
    schema: Schema, name: str, split: Split, share: Share, *, labels: bool, extra: tuple[str, ...], window_rows: int
) -> _Domain:
    location = schema.domains[name].files(split)
    if location is None:
        raise UserError(
            f"domain '{name}' of schema '{schema.name}' has no '{split}' files; "
            f"name them in the schema: domains: {name}: {split}: PATH"
        )
    decoder = Decoder(schema, name, labels=labels, extra=extra)
    files = ParquetFiles(location, schema.root, decoder.check)
    if split == "train" and not files.row_groups:
        raise UserError(f"domain '{name}': the train files hold no rows ({location}); there is nothing to learn from")
    return _Domain(files, Shard(name, files.row_groups, share, window_rows), decoder)


@dataclass(frozen=True)
class _Loaded:
    """A window in memory, its rows in the order in which they come."""

    window: Window
    rows: Rows


class _Stream:
    """The rows of one domain, front to back; the next window is read while the present one is cut into batches."""

    def __init__(self, domain: _Domain, pool: ThreadPoolExecutor, stop: int):
        self._domain = domain
        self._pool = pool
        self._stop = stop
        self._read_row_group = domain.files.reader(domain.decoder.columns)
        self._last_read: tuple[RowGroup, pa.Table] | None = None
        self._present: _Loaded | None = None
        self._next: Future[_Loaded] | None = None

    def read(self, start: int, stop: int) -> list[Rows]:
        """Rows [start, stop) of the stream; each call goes on where the last one ended."""
        parts = []
        while start < stop:
            present = self._window_with(start)
            until = min(stop, present.window.stop)
            parts.append(present.rows.slice(start - present.window.first, until - present.window.first))
            start = until
        return parts

    def _window_with(self, row: int) -> _Loaded:
        present = self._present
        if present is None or row >= present.window.stop:
            future = self._next or self._pool.submit(self._load, row)
            self._present = present = future.result()
            more = present.window.stop < self._stop
            self._next = self._pool.submit(self._load, present.window.stop) if more else None
        return present

    def _load(self, row: int) -> _Loaded:
        """Read, convert and check the window that holds `row`."""
        window = self._domain.shard.window_at(row)
        parts = []
        for piece in self._domain.shard.pieces(window):
            first_row = piece.row_group.first_row + piece.start
            for batch in self._table(piece.row_group).slice(piece.start, piece.stop - piece.start).to_batches():
                parts.append(self._domain.decoder.decode(batch, Origin(piece.row_group.file, first_row)))
                first_row += batch.num_rows
        return _Loaded(window, Rows.gather(parts, self._domain.shard.order(window)))

    def _table(self, row_group: RowGroup) -> pa.Table:
        """The row group; the last one is kept, as a large one spans several windows."""
        if self._last_read is None or self._last_read[0] != row_group:
            self._last_read = None
            self._last_read = (row_group, self._read_row_group(row_group))
        return self._last_read[1]


def _prefetched(source: Generator[Batch, None, None], depth: int) -> Iterator[Batch]:
    """`source`, run by a thread that stays up to `depth` batches ahead; ends with the consumer, fails in the consumer."""
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
            except BaseException as error:  # noqa: BLE001 - raised in the consumer
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
