"""A planted feed: every domain shows a kind of things of its own; some features are shared, some specific, some noise.

Shape legend: R rows, K taste dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from torchrec_xd.datasets.planted.population import (
    ATTRIBUTE_VALUES,
    BRAND,
    CATEGORY,
    Array,
    Interest,
    Items,
    draw_items,
    draw_meaning,
    draw_users,
)
from torchrec_xd.datasets.planted.rows import (
    CLICK,
    PROB,
    attribute_names,
    draw_labels,
    id_feature,
    shared_features,
    user_columns,
    user_features,
    with_noise,
    world_schema,
)
from torchrec_xd.datasets.planted.settings import SPLITS, FeedSettings
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema, Task

KIND = 0
"""First of what seeds this kind of world's draws, after the seed itself."""
MEANINGS, USERS, ITEMS, CALIBRATION, ROWS, VECTORS = range(6)
COLD = "cold"


class FeedWorld:
    """For MKT: `click` is what the user's taste in the domain makes of the item, and its quality."""

    def __init__(self, settings: FeedSettings) -> None:
        self.settings, self._key = settings, (settings.seed, KIND)
        self.shared = attribute_names("", (CATEGORY, BRAND), settings.num_shared)
        own = [attribute_names(f"{domain}_", (), settings.features - settings.num_shared) for domain in settings.names]
        self._telling = [names[: len(names) - settings.num_noise] for names in own]
        self._noise = [names[len(names) - settings.num_noise :] for names in own]
        self.noise_features = tuple(column for columns in self._noise for column in columns)
        self.tasks: Mapping[Task, str] = {Task(label=CLICK, domain=domain): PROB for domain in settings.names}
        generator = np.random.default_rng([*self._key, MEANINGS])
        meanings = {column: draw_meaning(column, settings, generator) for column in self.shared}
        self.users = draw_users(
            meanings[CATEGORY],
            settings,
            [*self._key, USERS],
            cold_share=settings.cold_users,
            poisoned=settings.poisoned_users,
        )
        self.items, self._interests, self._vectors = [], [], []
        for domain, telling in enumerate(self._telling):
            drawn = np.random.default_rng([*self._key, ITEMS, domain])
            specific = {column: draw_meaning(column, settings, drawn) for column in telling}
            items = draw_items({**meanings, **specific}, settings, drawn)
            key = [*self._key, CALIBRATION, domain]
            taste, seen = self.users.taste[domain], self.users.seen[domain]
            self.items.append(items)
            self._vectors.append(_vectors(items, settings, np.random.default_rng([*self._key, VECTORS, domain])))
            self._interests.append(Interest(taste, items, settings.strength).calibrated(settings.click_rate, seen, key))

    def columns(self, domain: int, split: str, chunk: int, count: int) -> Mapping[str, Array | pa.Array]:
        """The first `count` rows of a chunk."""
        settings, items = self.settings, self.items[domain]
        generator = np.random.default_rng([*self._key, ROWS, domain, SPLITS.index(split), chunk])
        shown = self.users.tested if split == "test" else self.users.seen
        user_R, item_R = shown[domain].draw(generator, count), items.popularity.draw(generator, count)
        prob_R = self._interests[domain].prob(user_R, item_R)
        label_R, prob_R = draw_labels(with_noise(prob_R, settings.click_rate, settings.label_noise), generator)
        return {
            **user_columns(self.users, settings.names, user_R),
            COLD: self.users.cold_U[user_R],
            **{column: values_N[item_R] for column, values_N in items.values.items()},
            item_column(settings.names[domain]): item_R,
            **self._vector_column(domain, item_R),
            **{
                column: generator.integers(ATTRIBUTE_VALUES, size=count, dtype=np.int32)
                for column in self._noise[domain]
            },
            CLICK: label_R,
            PROB: prob_R,
        }

    def _vector_column(self, domain: int, item_R: Array) -> Mapping[str, pa.Array]:
        if not self.settings.vector:
            return {}
        values_RV = self._vectors[domain][item_R]
        column = pa.FixedSizeListArray.from_arrays(values_RV.ravel(), self.settings.vector)
        return {_vector_name(self.settings.names[domain]): column}

    def schema(self, name: str) -> Schema:
        """What the columns mean."""
        features = [*user_features(self.settings, self.settings.users), *shared_features(self.shared, self.settings)]
        for domain, telling, noise in zip(self.settings.names, self._telling, self._noise, strict=True):
            features.append(id_feature(item_column(domain), self.settings.items, "specific", domain))
            features += [id_feature(column, ATTRIBUTE_VALUES, "specific", domain) for column in (*telling, *noise)]
            if self.settings.vector:
                features.append(
                    Feature(
                        column=_vector_name(domain),
                        kind="vector",
                        group="specific",
                        length=self.settings.vector,
                        domains=(domain,),
                    )
                )
        return world_schema(name, self.settings, self.tasks, features)


def item_column(domain: str) -> str:
    """Name of the id of a domain's items."""
    return f"{domain}_item"


def _vector_name(domain: str) -> str:
    return f"{domain}_vector"


def _vectors(items: Items, settings: FeedSettings, generator: np.random.Generator) -> Array:
    """What items mean, in a space of the domain's own, and noise of the same variance, [N, V] float32."""
    shape = (settings.taste_dim, settings.vector)
    map_KV = generator.standard_normal(shape, dtype=np.float32)
    noise_NV = generator.standard_normal((settings.items, settings.vector), dtype=np.float32)
    return np.asarray(np.tanh(items.meaning_NK @ map_KV) + noise_NV, dtype=np.float32)
