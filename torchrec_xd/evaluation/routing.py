"""Rows of one task, and their way to the rank and the part of their user.

Shape legend: R rows, S rows of a slab, P parts, W ranks, K extra columns.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np

from torchrec_xd.evaluation.collectives import Collectives
from torchrec_xd.evaluation.row_quantities import RULES, Array, ascending, count_faults

S = TypeVar("S")
T = TypeVar("T")
PART_ROWS = 1 << 18
"""Rows that are worked on at a time, on each core: few, so that what is looked up stays in the cache."""
SLAB_ROWS = 1 << 21
"""Rows that are routed at a time."""

MOST_THREADS = 8
"""Slabs and parts that are worked on at the same time in a process, each of which takes memory."""


@dataclass(frozen=True)
class Rows:
    """Rows of one task, [R] each and [R, K]."""

    score: Array
    label: Array
    weight: Array | None
    """None: each row counts once."""
    user: Array
    extra: Array

    def __len__(self) -> int:
        return len(self.score)

    def weights(self) -> Array:
        """Those of all rows."""
        return np.ones(len(self), dtype=np.float32) if self.weight is None else self.weight

    def take(self, index: Array | slice) -> Rows:
        """Some rows, by place or by mask."""
        weight = None if self.weight is None else self.weight[index]
        return Rows(self.score[index], self.label[index], weight, self.user[index], self.extra[index])


Part = Sequence[Rows]
"""Rows of one task in pieces, with all rows of their users."""


def joined(part: Part) -> Rows:
    """The rows of a part, without extra columns."""
    if len(part) == 1:
        return replace(part[0], extra=part[0].extra[:, :0])
    score, label, user = (
        np.concatenate([getattr(piece, name) for piece in part]) for name in ("score", "label", "user")
    )
    known = any(piece.weight is not None for piece in part)
    weight = np.concatenate([piece.weights() for piece in part]) if known else None
    return Rows(score, label, weight, user, score[:, None][:, :0])


def chosen(parts: Sequence[Part], kept_R: Array) -> list[Part]:
    """The rows of a mask over all pieces, one after the other; parts that become small are put together."""
    found: list[list[Rows]] = [[]]
    rows = start = 0
    for part in parts:
        if rows >= PART_ROWS:
            found.append([])
            rows = 0
        for piece in part:
            found[-1].append(piece.take(np.flatnonzero(kept_R[start : start + len(piece)])))
            start += len(piece)
            rows += len(found[-1][-1])
    return list(found)


def side_by_side(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What work makes of every item, in order, as many at a time as there are cores, up to MOST_THREADS.

    Items are made as they are needed, one more than there are threads. Sorting, gathering and summing do without
    Python's lock.
    """
    if isinstance(items, Sequence) and len(items) == 1:  # a thread would take longer to start
        yield work(items[0])
        return
    cores = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    with ThreadPoolExecutor(cores) as threads:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(threads.submit(work, item))
            if len(pending) > cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def route_by_user(slabs: Sequence[Callable[[], Rows]], rows: int, ranks: Collectives) -> tuple[list[Part], Array]:
    """All rows of a user into one part on one rank (a collective).

    Ids are scrambled first, as they may share a divisor with the number of places.

    Args:
        slabs: of this rank, each made when its turn comes, so that no more than a few exist at a time.
        rows: of this rank at most.
        ranks: that share the rows.

    Returns:
        The parts of this rank, and how many rows of all ranks break each of the RULES.
    """
    most_slabs, most_rows = ranks.gather(np.array([len(slabs), rows])).max(axis=0).tolist()
    num_parts = -(-most_rows // PART_ROWS) or 1
    parts: list[list[Rows]] = [[] for _ in range(num_parts)]
    faults = np.zeros(len(RULES), dtype=np.int64)
    found = side_by_side(lambda slab: _by_place(slab(), ranks.size, num_parts), slabs)
    for turn in range(most_slabs):
        if turn < len(slabs):
            slab, rows_at, faults_S = next(found)
            faults += faults_S
        else:  # other ranks have more
            slab, rows_at = slab.take(slice(0)), np.zeros_like(rows_at)
        slab, rows_WP = _exchanged(slab, rows_at.reshape(ranks.size, num_parts), ranks)
        for i, (start, stop) in enumerate(pairwise(accumulate(rows_WP.ravel().tolist(), initial=0))):
            if stop > start:
                parts[i % num_parts].append(slab.take(slice(start, stop)))
    return [part for part in parts if part] or [[slab.take(slice(0))]], ranks.total(faults)


def _by_place(slab: Rows, ranks: int, parts: int) -> tuple[Rows, Array, Array]:
    """The rows of a slab by rank and part, the number of rows at each of these places, and faults.

    Columns become as small as they can be: the label a byte, the weight none where all are 1.
    """
    faults = count_faults(slab.score, slab.label, slab.weights())
    weight = None if slab.weight is None or (slab.weight == 1).all() else slab.weight
    slab = Rows(slab.score, (slab.label == 1).view(np.uint8), weight, slab.user, slab.extra)
    places = ranks * parts
    if places == 1:
        return slab, np.array([len(slab)]), faults
    scrambled_S = slab.user.astype(np.uint64)
    scrambled_S *= np.uint64(0x9E3779B97F4A7C15)
    scrambled_S >>= np.uint64(32)
    scrambled_S %= np.uint64(places)
    place_S = scrambled_S.astype(np.int64)
    return slab.take(ascending(place_S)), np.bincount(place_S, minlength=places), faults


def _exchanged(slab: Rows, rows_WP: Array, ranks: Collectives) -> tuple[Rows, Array]:
    """The rows that are sent to this rank, by sending rank and part, and their numbers."""
    if ranks.size == 1:
        return slab, rows_WP
    # All ranks send the same columns in the same types; a rank without rows does not know these.
    own = np.append(rows_WP.ravel(), [slab.weight is not None, slab.score.itemsize])
    everywhere = ranks.gather(own)
    weighted, itemsize = everywhere[:, -2:].max(axis=0).tolist()
    columns = [slab.score.astype(f"f{itemsize}", copy=False), slab.label, slab.user, slab.extra]
    columns += [slab.weights()] if weighted else []
    score, label, user, extra, *weight = ranks.exchange(columns, rows_WP.sum(axis=1))
    arrived = Rows(score, label, weight[0] if weighted else None, user, extra)
    return arrived, everywhere[:, :-2].reshape(ranks.size, *rows_WP.shape)[:, ranks.rank]
