"""A platform in a world with a clock: who asks for something, what could be shown, what is shown, what is clicked.

What chance decides is drawn for every candidate, shown or not, from the seed and the day alone: whatever an arm shows,
the same candidate of the same request has the same fate.

Shape legend: Q requests, C candidates of a request, P places that are filled, R rows (candidates), L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_xd.datasets.planted.clock import ClockWorld, Columns, Day, Shown
from torchrec_xd.datasets.planted.population import Array
from torchrec_xd.datasets.planted.rows import PROB
from torchrec_xd.datasets.planted.writing import write_row_groups
from torchrec_xd.errors import UserError

REQUESTS, ARMS = 10, 11
"""What follows a world's key in the seeds of a platform; the world itself uses smaller numbers."""
BLOCK = 4_096
"""Requests that are drawn and answered at a time, so that memory does not grow with their number."""
EXPLORED, SCORE, POSITION = "explored", "score", "position"
Scores = Callable[[Columns, Array], Array]
"""Columns of rows and their true probabilities -> what they are ranked by, [R]."""


@dataclass(frozen=True)
class Block:
    """Some requests of one arm, with all that chance decides about them."""

    rows: Shown
    """All candidates, request by request."""
    place_RC: tuple[Array, Array]
    """Request and number of each candidate."""
    shape: tuple[int, int]
    explore_QP: Array
    """Uniform: where it is below the exploration rate, the place is filled at random."""
    random_R: Array
    """Uniform: the order of random choices."""
    columns: Columns
    truth: Mapping[str, Array]
    labels: Mapping[str, Array]


@dataclass(frozen=True)
class Served:
    """What an arm has shown in a block of requests; and what the best choice would have been worth."""

    columns: Columns
    """Of the rows that were shown: a log."""
    best: float
    """Expected clicks of the best choice for the same requests."""


def blocks(
    world: ClockWorld, day: Day, number: int, *, requests: int, candidates: int, places: int, arm: int, arms: int
) -> Iterator[Block]:
    """The requests of one arm on a day; users belong to arms by a hash of their ids.

    Candidates are drawn by popularity; no request has one twice, and where few items are popular some have fewer.

    Args:
        world: with a clock.
        day: of the world.
        number: of the day.
        requests: of all arms together.
        candidates: of a request, at most.
        places: to be filled.
        arm: which one.
        arms: how many there are.
    """
    for block, start in enumerate(range(0, requests, BLOCK)):
        count = min(BLOCK, requests - start)
        generator = np.random.default_rng([*world.key, REQUESTS, number, block])
        user_Q = day.users.users.seen[0].draw(generator, count)
        scene = day.scene(0, generator, count)
        drawn = day.items(0).items.popularity.draw(generator, count * 2 * candidates).reshape(count, 2 * candidates)
        item_QC = first_distinct(drawn, candidates)
        explore_QP = generator.random((count, places))
        random_QC = generator.random((count, candidates))
        uniform_LQC = generator.random((day.draws(0), count, candidates))
        noise = np.random.default_rng([*world.key, REQUESTS, number, block, 1, arm])
        own_Q = np.flatnonzero(arm_of(day.users.id_U[user_Q], arms, world.key) == arm)
        item_QC, random_QC, uniform_LQC = item_QC[own_Q], random_QC[own_Q], uniform_LQC[:, own_Q]
        there = item_QC >= 0
        request_R, number_R = np.nonzero(there)
        from_R = own_Q[request_R]
        rows = Shown(user_Q[from_R], item_QC[there], {name: values[from_R] for name, values in scene.items()})
        truth = day.truth(0, rows)
        yield Block(
            rows=rows,
            place_RC=(request_R, number_R),
            shape=(len(own_Q), candidates),
            explore_QP=explore_QP[own_Q],
            random_R=random_QC[there],
            columns=day.columns(0, rows, noise),
            truth=truth,
            labels=day.labels(0, truth, uniform_LQC[:, there]),
        )


def serve(block: Block, scores: Scores, places: int, exploration: float) -> Served:
    """Show the candidates with the highest scores; a share of the places is filled by chance.

    Args:
        block: of requests.
        scores: what candidates are ranked by.
        places: filled for each request, as far as it has candidates.
        exploration: share of the places that are filled by a random candidate.
    """
    score_R = scores(block.columns, block.truth[PROB])
    score_QC, random_QC, prob_QC = (_matrix(block, values) for values in (score_R, block.random_R, block.truth[PROB]))
    chosen_QP = choose(score_QC, random_QC, block.explore_QP < exploration)
    real = chosen_QP >= 0
    row_R = np.take_along_axis(_matrix(block, np.arange(len(score_R))), chosen_QP, axis=1)[real].astype(np.int64)
    best_QP = -np.sort(-prob_QC, axis=1)[:, :places]
    taken: dict[str, Any] = {name: _take(values, row_R) for name, values in block.columns.items()}
    position_QP = np.broadcast_to(np.arange(places, dtype=np.int32), real.shape)
    return Served(
        columns={
            **taken,
            **{name: values[row_R] for name, values in {**block.labels, **block.truth}.items()},
            SCORE: score_R[row_R].astype(np.float32),
            POSITION: position_QP[real],
            EXPLORED: (block.explore_QP < exploration)[real].astype(np.int8),
        },
        best=float(best_QP[np.isfinite(best_QP)].astype(np.float64).sum()),
    )


def choose(score_QC: Array, random_QC: Array, explore_QP: Array) -> Array:
    """For each place the candidate with the highest score that is left, or a random one that is left, [Q, P].

    Candidates that are not there have the score -inf; where none is left, the place is -1.
    """
    there_QC = np.isfinite(score_QC)
    keys = np.stack([score_QC, np.where(there_QC, random_QC, -np.inf)])
    rows, chosen = np.arange(len(score_QC)), []
    for explore_Q in explore_QP.T:
        key_QC = np.where(explore_Q[:, None], keys[1], keys[0])
        at_Q = key_QC.argmax(axis=1)
        chosen.append(np.where(np.isfinite(key_QC[rows, at_Q]), at_Q, -1))
        keys[:, rows, at_Q] = -np.inf
    return np.stack(chosen, axis=1)


def first_distinct(item_QD: Array, most: int) -> Array:
    """The first different items of each row, [Q, C]; -1 where there are fewer."""
    order_QD = np.argsort(item_QD, axis=1, kind="stable")
    sorted_QD = np.take_along_axis(item_QD, order_QD, axis=1)
    new_QD = np.ones(item_QD.shape, dtype=bool)
    repeated_QD = np.zeros(item_QD.shape, dtype=bool)
    repeated_QD[:, 1:] = sorted_QD[:, 1:] == sorted_QD[:, :-1]
    np.put_along_axis(new_QD, order_QD, ~repeated_QD, axis=1)
    at_QD = np.cumsum(new_QD, axis=1) - 1
    kept = new_QD & (at_QD < most)
    found = np.full((len(item_QD), most), -1, dtype=item_QD.dtype)
    found[np.nonzero(kept)[0], at_QD[kept]] = item_QD[kept]
    return found


def arm_of(id_R: Array, arms: int, key: Iterable[int]) -> Array:
    """The arm of each user, by a hash (SplitMix64) of the id and the world's key: the same one every day."""
    salt = np.random.default_rng([*key, ARMS]).integers(2**63, dtype=np.uint64)
    mixed = id_R.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) % np.uint64(arms), dtype=np.int64)


def write_log(path: Path, served: Iterable[Columns]) -> None:
    """A log as Parquet, whole or not at all.

    Raises:
        UserError: there are no rows.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    write_row_groups(partial, (columns for columns in served if len(columns[PROB])))
    if not partial.exists():
        raise UserError(
            f"{path}: nobody asked this arm for anything that day; raise `requests`, or the world's `users`"
        )
    partial.replace(path)


def _matrix(block: Block, values_R: Array) -> Array:
    """One value for each candidate of each request; -inf where there is none."""
    matrix_QC = np.full(block.shape, -np.inf)
    matrix_QC[block.place_RC] = values_R
    return matrix_QC


def _take(values: Any, row_R: Array) -> Any:
    return values[row_R] if isinstance(values, np.ndarray) else values.take(row_R)
