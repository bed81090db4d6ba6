"""Which rows are mine: row groups -> an endless, equal share per rank, cut into windows that can be shuffled alone.

Everything here is arithmetic on (seed, domain, pass, window, rank): a reader resumes by jumping to a row's window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.errors import UserError


@dataclass(frozen=True)
class ShardSpec:
    """Whose part of the rows is read, and in which order."""

    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    """False: rows come in file order, domain by domain inside each batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in [0, {self.world_size}), the ranks of the world")

    def of(self, total: int) -> tuple[int, int]:
        """The part [start, stop) of `total` rows that is this rank's; parts differ by at most one row."""
        return self.rank * total // self.world_size, (self.rank + 1) * total // self.world_size


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file."""

    file: str
    index: int
    first_row: int
    """Its first row, counted from the start of the file."""
    rows: int


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a row group."""

    row_group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows that lie together in memory and are shuffled among themselves."""

    number: int
    """Index of the pass over the data; each pass has its own order."""
    first: int
    """Its first row in the rank's endless stream."""
    stop: int
    """The row after its last one."""


class Shard:
    """One domain as one rank sees it: an endless stream of rows, pass after pass over the rank's part.

    A pass orders the row groups by a permutation that all ranks agree on; rank r owns rows [r*N//W, (r+1)*N//W) of that
    order, so every row is read by exactly one rank in each pass, and a rank's part is equally long in every pass.
    """

    def __init__(self, domain: str, row_groups: tuple[RowGroup, ...], share: ShardSpec, window_rows: int):
        self._domain = domain
        self._row_groups = row_groups
        self._share = share
        self._window_rows = window_rows
        self.total_rows = sum(group.rows for group in row_groups)
        """Rows of one pass, over all ranks."""
        self._start, stop = share.of(self.total_rows)
        self.rows = stop - self._start
        """Rows of one pass, this rank."""

    def window_at(self, row: int) -> Window:
        """The window that holds row `row` of the stream; the rank must own rows."""
        number, offset = divmod(row, self.rows)
        start = offset // self._window_rows * self._window_rows
        stop = min(start + self._window_rows, self.rows)
        return Window(number, number * self.rows + start, number * self.rows + stop)

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """The windows that hold rows [start, stop) of the stream, in order."""
        while start < stop:
            window = self.window_at(start)
            yield window
            start = window.stop

    def pieces(self, window: Window) -> list[Piece]:
        """What to read for a window, in stream order before shuffling."""
        start, stop = (self._start + row - window.number * self.rows for row in (window.first, window.stop))
        row_groups = self._row_groups
        if self._share.shuffle:
            order = self._generator(window.number).permutation(len(row_groups))
            row_groups = tuple(row_groups[i] for i in order)
        ends = np.cumsum([group.rows for group in row_groups])
        pieces = []
        for i in range(int(np.searchsorted(ends, start, side="right")), len(row_groups)):
            before = int(ends[i]) - row_groups[i].rows
            if before >= stop:
                break
            pieces.append(Piece(row_groups[i], max(start - before, 0), min(stop - before, row_groups[i].rows)))
        return pieces

    def order(self, window: Window) -> NDArray[np.int64] | None:
        """In which order the rows of a window come; None: as they lie."""
        if not self._share.shuffle:
            return None
        return self._generator(window.number, window.first, self._share.rank).permutation(window.stop - window.first)

    def _generator(self, *key: int) -> np.random.Generator:
        text = repr((self._share.seed, self._domain, *key))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest(), "little"))


def mixed_rows(
    totals: dict[str, int], mixing: dict[str, float], world_size: int, setting: str = "mixing"
) -> dict[str, int]:
    """Rows that each domain gives to an epoch of `sum(totals)` rows; shares are relative and need not sum to 1.

    Raises:
        UserError: a domain is unknown or missing; or it has a share above 0, and fewer rows than there are ranks, or
            gets no row at all. `setting` is named.
    """
    unknown = sorted(mixing.keys() - totals.keys())
    missing = sorted(totals.keys() - mixing.keys())
    if unknown or missing:
        fault = f"unknown domain '{unknown[0]}'" if unknown else f"domain '{missing[0]}' has no share"
        raise UserError(f"{setting}: {fault}; name each of these domains once: {', '.join(totals)}")
    for domain, rows in totals.items():
        if rows < world_size and mixing[domain]:
            raise UserError(
                f"{setting}: domain '{domain}' has {rows} rows for {world_size} ranks, so some rank has none to "
                f"repeat; use fewer ranks, or leave {setting} out"
            )
    epoch = sum(totals.values())
    shares = np.cumsum([mixing[domain] for domain in totals])
    ends = np.rint(shares / shares[-1] * epoch).astype(int).tolist()
    rows_of = {domain: end - start for domain, start, end in zip(totals, [0, *ends], ends, strict=False)}
    for domain, rows in rows_of.items():
        if rows == 0 and mixing[domain]:
            raise UserError(
                f"{setting}: the share {mixing[domain]} of domain '{domain}' comes to no row in an epoch of {epoch} "
                "rows; raise it, or train on a schema without that domain"
            )
    return rows_of
