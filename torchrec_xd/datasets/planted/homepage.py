"""A planted homepage: the same items in all domains; what users want in a source is clicked where it fits the scene.

Shape legend: R rows, C categories, S time slots, L places on the page.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from torchrec_xd.datasets.planted.population import (
    BRAND,
    CATEGORY,
    Array,
    Choice,
    Interest,
    draw_items,
    draw_meaning,
    draw_users,
    sigmoid,
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
from torchrec_xd.datasets.planted.settings import SPLITS, TARGET, HomepageScenes, HomepageSettings
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema, Task

KIND = 1
"""First of what seeds this kind of world's draws, after the seed itself."""
MEANINGS, USERS, ITEMS, CALIBRATION, ROWS, FIT, SHARED = range(7)
ITEM, SLOT, PLACE = "item", "scene_slot", "scene_place"


class HomepageWorld:
    """For EXIT: what a user wants in a source is clicked in the target where it is fit.

    Of target rows `wanted` (y_s) and `fit` (c) are drawn for every source, and then
    `click = own or (wanted and fit)`, where `own` is what the user's taste in the target makes of the item. Only what a
    source shows can be wanted there (`shared_items`), and with `members_only` only by its users.

    `fit` has the true transfer probability: `sigmoid(strength * (sqrt(d) scene + sqrt(1 - d) category))`, where both
    effects have variance 1, `scene` is a number per source, slot, place and category, and d the scene dependence.
    """

    def __init__(self, settings: HomepageSettings) -> None:
        self.settings, self._key = settings, (settings.seed, KIND)
        self.noise_features: tuple[str, ...] = ()
        self.shared = attribute_names("", (CATEGORY, BRAND), settings.features)
        self.tasks: Mapping[Task, str] = homepage_tasks(settings.names)
        generator = np.random.default_rng([*self._key, MEANINGS])
        meanings = {column: draw_meaning(column, settings, generator) for column in self.shared}
        self.users = draw_users(meanings[CATEGORY], settings, [*self._key, USERS])
        self.items = draw_items(meanings, settings, np.random.default_rng([*self._key, ITEMS]))
        rates = [settings.own_rate, *[settings.click_rate] * (settings.domains - 1)]
        self.interests = tuple(
            Interest(self.users.taste[domain], self.items, settings.strength).calibrated(
                rate, self.users.seen[domain], [*self._key, CALIBRATION, domain]
            )
            for domain, rate in enumerate(rates)
        )
        shared = np.random.default_rng([*self._key, SHARED])
        self._in_sources_N = shared.random(settings.items) < settings.shared_items
        self._in_sources_N[0] = True
        self._never_C = shared.random(settings.categories) < settings.never_fit
        self._shown_in_sources = Choice.among(
            np.flatnonzero(self._in_sources_N), self.items.weight_N[self._in_sources_N]
        )
        self.fit_SLC = tuple(
            np.where(self._never_C, 0.0, fit_prob(settings, np.random.default_rng([*self._key, FIT, source])))
            for source in range(1, settings.domains)
        )

    def columns(self, domain: int, split: str, chunk: int, count: int) -> Mapping[str, Array | pa.Array]:
        """The first `count` rows of a chunk."""
        settings, items, users = self.settings, self.items, self.users
        generator = np.random.default_rng([*self._key, ROWS, domain, SPLITS.index(split), chunk])
        shown = self._shown_in_sources if domain else items.popularity
        user_R, item_R = users.seen[domain].draw(generator, count), shown.draw(generator, count)
        columns: dict[str, Array | pa.Array] = {
            **user_columns(users, settings.names, user_R),
            **{column: values_N[item_R] for column, values_N in items.values.items()},
            ITEM: item_R,
        }
        if domain == 0:
            return columns | self._target_columns(user_R, item_R, generator)
        prob_R = with_noise(self.interests[domain].prob(user_R, item_R), settings.click_rate, settings.label_noise)
        label_R, prob_R = draw_labels(prob_R, generator)
        return {**columns, CLICK: label_R, PROB: prob_R}

    def _target_columns(self, user_R: Array, item_R: Array, generator: np.random.Generator) -> dict[str, Array]:
        settings, count = self.settings, len(user_R)
        slot_R = generator.integers(settings.slots, size=count, dtype=np.int32)
        place_R = generator.integers(settings.places, size=count, dtype=np.int32)
        own_R = self.interests[0].prob(user_R, item_R)
        clicked_R, not_prob_R = generator.random(count) < own_R, 1 - own_R
        columns: dict[str, Array] = {SLOT: slot_R, PLACE: place_R}
        for number, source in enumerate(settings.names[1:]):
            possible_R = self._in_sources_N[item_R]
            if settings.members_only:
                possible_R = possible_R & self.users.member_DU[number + 1][user_R]
            wanted_prob_R = np.where(possible_R, self.interests[number + 1].prob(user_R, item_R), 0.0)
            wanted_R, prob_wanted_R = draw_labels(wanted_prob_R, generator)
            fit_prob_R = self.fit_SLC[number][slot_R, place_R, self.items.values[CATEGORY][item_R]]
            fit_R, prob_fit_R = draw_labels(fit_prob_R, generator)
            clicked_R |= (wanted_R & fit_R).astype(bool)
            not_prob_R *= 1 - prob_wanted_R.astype(np.float64) * prob_fit_R
            end = source.removeprefix("source")
            columns |= {f"wanted{end}": wanted_R, f"prob_wanted{end}": prob_wanted_R}
            columns |= {f"fit{end}": fit_R, f"prob_transfer{end}": prob_fit_R}
        noisy_R = generator.random(count) < settings.label_noise
        random_R = generator.random(count) < settings.click_rate
        prob_R = with_noise(1 - not_prob_R, settings.click_rate, settings.label_noise)
        columns[CLICK] = np.where(noisy_R, random_R, clicked_R).astype(np.int8)
        columns[PROB] = prob_R.astype(np.float32)
        return columns

    def schema(self, name: str) -> Schema:
        """What the columns mean."""
        settings = self.settings
        features: list[Feature] = [
            *user_features(settings, settings.users),
            *shared_features(self.shared, settings),
            id_feature(ITEM, settings.items, "shared"),
            id_feature(SLOT, settings.slots, "scene", TARGET),
            id_feature(PLACE, settings.places, "scene", TARGET),
        ]
        return world_schema(name, settings, self.tasks, features)


def homepage_tasks(names: tuple[str, ...]) -> dict[Task, str]:
    """Labels and the columns with their true probabilities; `source` needs no suffix, `source_2` has `_2`."""
    tasks = {Task(label=CLICK, domain=TARGET): PROB}
    for source in names[1:]:
        end = source.removeprefix("source")
        tasks[Task(label=f"wanted{end}", domain=TARGET)] = f"prob_wanted{end}"
        tasks[Task(label=f"fit{end}", domain=TARGET)] = f"prob_transfer{end}"
    return tasks | {Task(label=CLICK, domain=source): PROB for source in names[1:]}


def fit_prob(settings: HomepageScenes, generator: np.random.Generator) -> Array:
    """True transfer probability of one source, [S, L, C]."""
    slots, places, categories = settings.slots, settings.places, settings.categories
    # slot, place, and what the slot means to the category: no factorisation into scene and item gives it away
    scene_SLC = _standard(
        _standard(generator.standard_normal((slots, 1, 1)))
        + _standard(generator.standard_normal((1, places, 1)))
        + _standard(generator.standard_normal((slots, 1, categories)))
    )
    category_C = _standard(generator.standard_normal(categories))
    share = settings.scene_dependence
    return sigmoid(settings.transfer_strength * (np.sqrt(share) * scene_SLC + np.sqrt(1 - share) * category_C))


def _standard(values: Array) -> Array:
    """Mean 0 and variance 1 over all values."""
    return np.asarray((values - values.mean()) / values.std())
