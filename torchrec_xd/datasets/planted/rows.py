"""What a planted world hands to the writer, and the columns that both kinds of world have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from torchrec_xd.datasets.planted.population import CATEGORY, Array, Users, num_values
from torchrec_xd.datasets.planted.settings import SPLITS, TARGET, PopulationSettings
from torchrec_xd.feature import Feature, Group
from torchrec_xd.schema import Domain, Schema, Task

USER, SEGMENT, ACTIVITY = "user_id", "segment", "activity"
CLICK, PROB = "click", "prob"


class World(Protocol):
    """A planted world: rows on demand, any chunk of them without the others."""

    tasks: Mapping[Task, str]
    """Every task, and the column with the true probability of its label."""
    noise_features: tuple[str, ...]

    def columns(self, domain: int, split: str, chunk: int, count: int) -> Mapping[str, Array | pa.Array]:
        """The first `count` rows of a chunk."""
        ...

    def schema(self, name: str) -> Schema:
        """What the columns mean."""
        ...


def history_column(domain: str) -> str:
    """Name of the sequence of what users did in a domain."""
    return f"hist_{domain}"


def attribute_names(prefix: str, first: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`count` columns: some with names of their own, then `<prefix>attribute_<number>`."""
    named = first[:count]
    return (*named, *(f"{prefix}attribute_{number}" for number in range(len(named) + 1, count + 1)))


def user_columns(users: Users, names: tuple[str, ...], user_R: Array) -> dict[str, Array | pa.Array]:
    """The user columns of rows."""
    taken = pa.array(user_R)
    histories = {history_column(d): h.take(taken) for d, h in zip(names, users.histories, strict=True)}
    return {USER: user_R, SEGMENT: users.segment_U[user_R], ACTIVITY: users.activity_U[user_R], **histories}


def draw_labels(prob_R: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Labels, int8, and the probabilities as they are written, float32; it is these that the labels are drawn from."""
    written_R = prob_R.astype(np.float32)
    return (generator.random(len(written_R)) < written_R).astype(np.int8), written_R


def with_noise(prob_R: Array, rate: float, share: float) -> Array:
    """Probability of a label that is, in `share` of the rows, drawn at `rate` alone."""
    return (1 - share) * prob_R + share * rate


def user_features(settings: PopulationSettings, users: int) -> list[Feature]:
    """Features that `user_columns` fill; there are ids for `users` users."""
    features = [id_feature(column, rows, "user") for column, rows in ((USER, users), (SEGMENT, settings.segments))]
    return features + [
        Feature(
            column=history_column(domain),
            kind="sequence",
            group="sequence",
            table=CATEGORY,
            rows=settings.categories,
            length=settings.history,
        )
        for domain in settings.names
    ]


def id_feature(column: str, rows: int, group: Group, domain: str | None = None) -> Feature:
    """An id feature, of all domains or of one."""
    return Feature(column=column, kind="id", group=group, rows=rows, domains=None if domain is None else (domain,))


def shared_features(columns: tuple[str, ...], settings: PopulationSettings) -> list[Feature]:
    """Features that items of all domains have."""
    return [id_feature(column, num_values(column, settings), "shared") for column in columns]


def world_schema(
    name: str,
    settings: PopulationSettings,
    tasks: Mapping[Task, str],
    features: list[Feature],
    files: Mapping[str, str] = dict.fromkeys(SPLITS, "*.parquet"),
) -> Schema:
    """The schema of a world; its root is set when it is written. `files` are those of each split, below its folder."""
    domains = {
        domain: Domain(
            role="target" if domain == TARGET else "source", **{s: f"{domain}/{s}/{f}" for s, f in files.items()}
        )
        for domain in settings.names
    }
    return Schema(
        name=name,
        user=USER,
        activity=ACTIVITY,
        domains=domains,
        tasks=tuple(tasks),
        features=tuple(features),
    )
