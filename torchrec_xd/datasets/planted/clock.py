"""Planted worlds with a clock: who shows up on a day, what can be shown, and how likely each click is.

Shape legend: R rows, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from torchrec_xd.datasets.planted.clock_settings import ClockSettings, FeedClockSettings, HomepageClockSettings
from torchrec_xd.datasets.planted.feed import COLD, item_column
from torchrec_xd.datasets.planted.homepage import ITEM, PLACE, SLOT, fit_prob, homepage_tasks
from torchrec_xd.datasets.planted.lives import ItemLives, ItemsOfDay, UserLives, UsersOfDay
from torchrec_xd.datasets.planted.population import (
    ATTRIBUTE_VALUES,
    BRAND,
    CATEGORY,
    Array,
    Interest,
    draw_meaning,
)
from torchrec_xd.datasets.planted.rows import (
    CLICK,
    PROB,
    USER,
    attribute_names,
    id_feature,
    shared_features,
    user_columns,
    user_features,
    world_schema,
)
from torchrec_xd.datasets.planted.settings import TARGET
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema, Task

KIND = 2
"""First of what seeds the draws of feeds with a clock, after the seed itself; homepages have the next number."""
MEANINGS, USERS, ITEMS, CALIBRATION, ROWS, FIT, NOISE = range(7)
DAY, OWN = "day", "prob_own"
Columns = Mapping[str, "Array | pa.Array"]


@dataclass(frozen=True)
class Shown:
    """What is shown to whom, by place among those of a day."""

    user_R: Array
    item_R: Array
    scene: Mapping[str, Array]
    """Where and when; nothing in a feed."""

    def take(self, place_R: Array) -> Shown:
        """Some of these rows."""
        scene = {name: values[place_R] for name, values in self.scene.items()}
        return Shown(self.user_R[place_R], self.item_R[place_R], scene)


class Day(Protocol):
    """A day of a world with a clock; domains have their places in `ClockSettings.names`."""

    users: UsersOfDay

    def items(self, domain: int) -> ItemsOfDay:
        """What can be shown in a domain."""
        ...

    def scene(self, domain: int, generator: np.random.Generator, count: int) -> dict[str, Array]:
        """Where and when rows of a domain are shown."""
        ...

    def columns(self, domain: int, shown: Shown, generator: np.random.Generator) -> dict[str, Array | pa.Array]:
        """What models may read of rows, and the day."""
        ...

    def truth(self, domain: int, shown: Shown) -> dict[str, Array]:
        """True probabilities, float32, by column; `prob` is that of a click."""
        ...

    def labels(self, domain: int, truth: Mapping[str, Array], uniform_LR: Array) -> dict[str, Array]:
        """What happens, int8, by column: drawn from the truth by `draws` uniform numbers for each row."""
        ...

    def draws(self, domain: int) -> int:
        """Uniform numbers that `labels` needs for a row."""
        ...


class ClockWorld(Protocol):
    """A planted world with a clock."""

    tasks: Mapping[Task, str]
    """Every task, and the column with the true probability of its label."""
    noise_features: tuple[str, ...]
    key: tuple[int, int]
    """Seeds every draw."""

    @property
    def settings(self) -> ClockSettings:
        """What was asked for."""
        ...

    def day(self, number: int) -> Day:
        """A day, from 0, made without the others."""
        ...

    def schema(self, name: str) -> Schema:
        """What the columns mean; ids are enough for all days."""
        ...


def drawn_rows(world: ClockWorld, day: Day, number: int, domain: int, chunk: int, count: int) -> Columns:
    """The first `count` rows of a chunk of a domain's rows of a day, shown by chance: popular items more often."""
    generator = np.random.default_rng([*world.key, ROWS, domain, number, chunk])
    users, items = day.users.users.seen[domain], day.items(domain).items.popularity
    user_R, item_R = users.draw(generator, count), items.draw(generator, count)
    shown = Shown(user_R, item_R, day.scene(domain, generator, count))
    columns, truth = day.columns(domain, shown, generator), day.truth(domain, shown)
    return {**columns, **day.labels(domain, truth, generator.random((day.draws(domain), count))), **truth}


class FeedClock:
    """A feed over days: a kind of things in each domain; some features are shared, some specific, some noise."""

    def __init__(self, settings: FeedClockSettings) -> None:
        self.settings, self.key = settings, (settings.seed, KIND)
        self.shared = attribute_names("", (CATEGORY, BRAND), settings.num_shared)
        own = [attribute_names(f"{domain}_", (), settings.features - settings.num_shared) for domain in settings.names]
        self._telling = [names[: len(names) - settings.num_noise] for names in own]
        self.noise = [names[len(names) - settings.num_noise :] for names in own]
        self.noise_features = tuple(column for columns in self.noise for column in columns)
        self.tasks: Mapping[Task, str] = {Task(label=CLICK, domain=domain): PROB for domain in settings.names}
        generator = np.random.default_rng([*self.key, MEANINGS])
        meanings = {column: draw_meaning(column, settings, generator) for column in self.shared}
        self.users = UserLives(meanings[CATEGORY], settings, [*self.key, USERS])
        self.items = []
        for domain, telling in enumerate(self._telling):
            drawn = np.random.default_rng([*self.key, ITEMS, domain])
            specific = {column: draw_meaning(column, settings, drawn) for column in telling}
            self.items.append(ItemLives({**meanings, **specific}, settings, [*self.key, ITEMS, domain]))
        first = FeedDay(self, 0, [0.0] * settings.domains)
        self._biases = [
            interest.calibrated(settings.click_rate, first.users.users.seen[d], [*self.key, CALIBRATION, d]).bias
            for d, interest in enumerate(first.interests)
        ]

    def day(self, number: int) -> FeedDay:
        """A day, from 0."""
        return FeedDay(self, number, self._biases)

    def schema(self, name: str) -> Schema:
        """What the columns mean."""
        settings = self.settings
        features = [*user_features(settings, settings.users_ever), *shared_features(self.shared, settings)]
        for domain, telling, noise in zip(settings.names, self._telling, self.noise, strict=True):
            features.append(id_feature(item_column(domain), settings.items_ever, "specific", domain))
            features += [id_feature(column, ATTRIBUTE_VALUES, "specific", domain) for column in (*telling, *noise)]
        return _clock_schema(name, settings, self.tasks, features)


class FeedDay:
    """A day of a feed."""

    def __init__(self, world: FeedClock, number: int, biases: list[float]) -> None:
        self._world, self._number = world, number
        self.users = world.users.on(number)
        self._items = [items.on(number) for items in world.items]
        self.interests = [
            Interest(taste_UK, items.items, world.settings.strength, bias)
            for taste_UK, items, bias in zip(self.users.users.taste, self._items, biases, strict=True)
        ]

    def items(self, domain: int) -> ItemsOfDay:
        """What can be shown in a domain."""
        return self._items[domain]

    def scene(self, domain: int, generator: np.random.Generator, count: int) -> dict[str, Array]:
        """A feed has no scenes."""
        return {}

    def columns(self, domain: int, shown: Shown, generator: np.random.Generator) -> dict[str, Array | pa.Array]:
        """What models may read of rows, and the day."""
        world, items = self._world, self._items[domain]
        noise = {
            column: generator.integers(ATTRIBUTE_VALUES, size=len(shown.user_R), dtype=np.int32)
            for column in world.noise[domain]
        }
        return {
            **_shared_columns(self.users, items, world.settings, shown, self._number),
            item_column(world.settings.names[domain]): items.id_N[shown.item_R],
            **noise,
        }

    def truth(self, domain: int, shown: Shown) -> dict[str, Array]:
        """True probability of a click."""
        return {PROB: self.interests[domain].prob(shown.user_R, shown.item_R).astype(np.float32)}

    def labels(self, domain: int, truth: Mapping[str, Array], uniform_LR: Array) -> dict[str, Array]:
        """Clicks."""
        return {CLICK: (uniform_LR[0] < truth[PROB]).astype(np.int8)}

    def draws(self, domain: int) -> int:
        """One for each click."""
        return 1


class HomepageClock:
    """A homepage over days: what is wanted in a source is clicked where it fits the scene, which does not change."""

    def __init__(self, settings: HomepageClockSettings) -> None:
        self.settings, self.key = settings, (settings.seed, KIND + 1)
        self.noise_features: tuple[str, ...] = ()
        self.shared = attribute_names("", (CATEGORY, BRAND), settings.features)
        self.tasks: Mapping[Task, str] = homepage_tasks(settings.names)
        generator = np.random.default_rng([*self.key, MEANINGS])
        meanings = {column: draw_meaning(column, settings, generator) for column in self.shared}
        self.users = UserLives(meanings[CATEGORY], settings, [*self.key, USERS])
        self.items = ItemLives(meanings, settings, [*self.key, ITEMS])
        self.fit_SLC = tuple(
            fit_prob(settings, np.random.default_rng([*self.key, FIT, source])) for source in range(1, settings.domains)
        )
        first = HomepageDay(self, 0, [0.0] * settings.domains)
        rates = [settings.own_rate, *[settings.click_rate] * (settings.domains - 1)]
        self._biases = [
            interest.calibrated(rate, first.users.users.seen[d], [*self.key, CALIBRATION, d]).bias
            for d, (interest, rate) in enumerate(zip(first.interests, rates, strict=True))
        ]

    def day(self, number: int) -> HomepageDay:
        """A day, from 0."""
        return HomepageDay(self, number, self._biases)

    def schema(self, name: str) -> Schema:
        """What the columns mean."""
        settings = self.settings
        features = [
            *user_features(settings, settings.users_ever),
            *shared_features(self.shared, settings),
            id_feature(ITEM, settings.items_ever, "shared"),
            id_feature(SLOT, settings.slots, "scene", TARGET),
            id_feature(PLACE, settings.places, "scene", TARGET),
        ]
        return _clock_schema(name, settings, self.tasks, features)


class HomepageDay:
    """A day of a homepage."""

    def __init__(self, world: HomepageClock, number: int, biases: list[float]) -> None:
        self._world, self._number = world, number
        self.users, self._items = world.users.on(number), world.items.on(number)
        self.interests = [
            Interest(taste_UK, self._items.items, world.settings.strength, bias)
            for taste_UK, bias in zip(self.users.users.taste, biases, strict=True)
        ]

    def items(self, domain: int) -> ItemsOfDay:
        """What can be shown, the same in all domains."""
        return self._items

    def scene(self, domain: int, generator: np.random.Generator, count: int) -> dict[str, Array]:
        """Slot and place of target rows."""
        settings = self._world.settings
        if domain:
            return {}
        return {
            SLOT: generator.integers(settings.slots, size=count, dtype=np.int32),
            PLACE: generator.integers(settings.places, size=count, dtype=np.int32),
        }

    def columns(self, domain: int, shown: Shown, generator: np.random.Generator) -> dict[str, Array | pa.Array]:
        """What models may read of rows, and the day."""
        columns = _shared_columns(self.users, self._items, self._world.settings, shown, self._number)
        return {**columns, ITEM: self._items.id_N[shown.item_R], **shown.scene}

    def truth(self, domain: int, shown: Shown) -> dict[str, Array]:
        """Of target rows also how likely each source's item is wanted, and fits the scene."""
        rows = shown.user_R, shown.item_R
        if domain:
            return {PROB: self.interests[domain].prob(*rows).astype(np.float32)}
        own_R = self.interests[0].prob(*rows)
        truth, not_prob_R = {OWN: own_R.astype(np.float32)}, 1 - own_R
        category_R = self._items.items.values[CATEGORY][shown.item_R]
        for source, fit_SLC in enumerate(self._world.fit_SLC, start=1):
            wanted_R = self.interests[source].prob(*rows)
            fit_R = fit_SLC[shown.scene[SLOT], shown.scene[PLACE], category_R]
            end = _end(self._world.settings, source)
            truth |= {f"prob_wanted{end}": wanted_R.astype(np.float32), f"prob_transfer{end}": fit_R.astype(np.float32)}
            not_prob_R = not_prob_R * (1 - wanted_R * fit_R)
        return {PROB: (1 - not_prob_R).astype(np.float32), **truth}

    def labels(self, domain: int, truth: Mapping[str, Array], uniform_LR: Array) -> dict[str, Array]:
        """Of target rows `click = own or (wanted and fit)`, for any source; of source rows clicks alone."""
        if domain:
            return {CLICK: (uniform_LR[0] < truth[PROB]).astype(np.int8)}
        clicked_R = uniform_LR[0] < truth[OWN]
        labels: dict[str, Array] = {}
        for source in range(1, self._world.settings.domains):
            end = _end(self._world.settings, source)
            wanted_R = uniform_LR[2 * source - 1] < truth[f"prob_wanted{end}"]
            fit_R = uniform_LR[2 * source] < truth[f"prob_transfer{end}"]
            clicked_R = clicked_R | (wanted_R & fit_R)
            labels |= {f"wanted{end}": wanted_R.astype(np.int8), f"fit{end}": fit_R.astype(np.int8)}
        return {CLICK: clicked_R.astype(np.int8), **labels}

    def draws(self, domain: int) -> int:
        """Own interest, and two for each source."""
        return 1 if domain else 2 * self._world.settings.domains - 1


def _end(settings: ClockSettings, source: int) -> str:
    """What ends the columns of a source: nothing, `_2`, `_3`."""
    return settings.names[source].removeprefix("source")


def _shared_columns(
    users: UsersOfDay, items: ItemsOfDay, settings: ClockSettings, shown: Shown, number: int
) -> dict[str, Array | pa.Array]:
    user_R, item_R = shown.user_R, shown.item_R
    return {
        **user_columns(users.users, settings.names, user_R),
        USER: users.id_U[user_R],
        COLD: users.users.cold_U[user_R],
        DAY: np.full(len(user_R), number, dtype=np.int32),
        **{column: values_N[item_R] for column, values_N in items.items.values.items()},
    }


def _clock_schema(name: str, settings: ClockSettings, tasks: Mapping[Task, str], features: list[Feature]) -> Schema:
    splits = ["train", *(["test"] if settings.test_days else [])]
    return world_schema(name, settings, tasks, features, dict.fromkeys(splits, "day=*/*.parquet"))
