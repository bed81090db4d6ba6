"""Who and what is there on a day of a world with a clock: born, gone, taste turned, popularity risen or faded.

Everything is a function of the seed, the day of birth and the day asked for, so that a day needs no other day.

Shape legend: U users that live, N items that are there, K taste dimensions, S segments, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_xd.datasets.planted.clock_settings import ClockSettings
from torchrec_xd.datasets.planted.population import (
    Array,
    Choice,
    Items,
    Users,
    direction,
    draw_history,
    nearest,
)

COHORTS, TASTES, DAYS = range(3)
"""What follows an entity's key in seeds."""
OLD = 1_000
"""Days that users of the first day have been there."""
RAMP = 7
"""Days until a new user has a history as long as others."""
LONGEST_RARE = 1e-6
"""Lives that are rarer end there: who lives today was born in a bounded past."""
WEIGHT_SIGMA = 0.7
PERIOD = (10.0, 40.0)
"""Days from one rise of an item's popularity to the next."""
Columns = dict[str, Array]


@dataclass(frozen=True)
class Births:
    """How one kind of entity comes and goes."""

    key: Sequence[int]
    first: int
    """Born on day 0."""
    daily: int
    """Born on each day after it."""
    deaths: float
    """Chance to leave, each day."""
    immortal: int
    """The first so many never leave, so that no day is empty."""

    @property
    def longest(self) -> float:
        """Days of the longest life."""
        return math.inf if self.deaths == 0 else max(1, math.ceil(math.log(LONGEST_RARE) / math.log1p(-self.deaths)))

    def alive(self, day: int, draw: Callable[[np.random.Generator, int], Columns]) -> Columns:
        """Those who are there on a day, cohort by cohort: what `draw` drew of them at birth, `id` and `born`.

        Args:
            day: from 0.
            draw: what a cohort of so many is like, drawn at birth; arrays of that length.
        """
        cohorts = [0, *range(max(1, day + 1 - int(min(self.longest, day + 1))), day + 1)]
        parts = [self._survivors(cohort, day, draw) for cohort in cohorts if cohort == 0 or self.daily]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _survivors(self, cohort: int, day: int, draw: Callable[[np.random.Generator, int], Columns]) -> Columns:
        count = self.daily if cohort else self.first
        generator = np.random.default_rng([*self.key, COHORTS, cohort])
        chance = generator.random(count)
        life = np.full(count, np.inf)
        if self.deaths:
            life = np.minimum(np.ceil(np.log1p(-chance) / math.log1p(-self.deaths)), self.longest)
        ids = np.arange(count) + (self.first + (cohort - 1) * self.daily if cohort else 0)
        kept = (np.maximum(life, 1) > day - cohort) | (ids < self.immortal)
        drawn = {**draw(generator, count), "id": ids, "born": np.full(count, cohort)}
        return {name: values[kept] for name, values in drawn.items()}


def turned(first: Array, second: Array, angle: float) -> Array:
    """What lies at an angle between two that have nothing to do with each other: its variance stays."""
    return np.asarray(math.cos(angle) * first + math.sin(angle) * second, dtype=np.float32)


@dataclass(frozen=True)
class UsersOfDay:
    """The users that live on a day; rows name them by their place among these."""

    users: Users
    id_U: Array
    """int64."""


class UserLives:
    """All users of a world.

    Args:
        meaning_CK: what categories mean to tastes.
        settings: of the world.
        key: seeds every draw.
    """

    def __init__(self, meaning_CK: Array, settings: ClockSettings, key: Sequence[int]) -> None:
        self._meaning_CK, self._settings, self._key = meaning_CK, settings, key
        daily = settings.daily(settings.users, settings.user_births)
        self._births = Births(key, settings.users, daily, settings.user_deaths, immortal=settings.domains)
        generator = np.random.default_rng([*key, TASTES])
        self._popular = _popular(settings, generator)
        self._centre_SK = self._taste(
            generator.standard_normal((settings.segments, 1, settings.taste_dim)).repeat(2, axis=1), 0, 0.0
        )

    def on(self, day: int) -> UsersOfDay:
        """Who lives on a day."""
        settings = self._settings
        drawn = self._births.alive(day, self._draw)
        id_U, angle = drawn["id"], settings.drift * day
        target_UK = self._taste(drawn["taste_0"], 0, angle)
        agreement = settings.agreement
        sources = [
            (agreement * target_UK + np.sqrt(1 - agreement**2) * self._taste(drawn[f"taste_{d}"], d, angle)).astype(
                np.float32
            )
            for d in range(1, settings.domains)
        ]
        taste = (target_UK, *sources)
        member_DU = tuple(
            (drawn["everywhere"] | (drawn["home"] == d) | (id_U == d)).astype(bool) for d in range(settings.domains)
        )
        new_U = (drawn["born"] == day) & (day > 0)
        age_U = np.where(drawn["born"] == 0, OLD, day - drawn["born"])
        lengths = self._lengths(drawn["weight"], member_DU, age_U, day)
        places = np.arange(len(id_U))
        seen = tuple(Choice.among(places[member], drawn["weight"][member]) for member in member_DU)
        return UsersOfDay(
            Users(
                taste=taste,
                member_DU=member_DU,
                seen=seen,
                tested=seen,
                segment_U=nearest(target_UK + 0.5 * drawn["blur"], self._centre_SK),
                cold_U=new_U.astype(np.int8),
                histories=tuple(
                    draw_history(
                        taste[d],
                        self._meaning_CK,
                        np.minimum(lengths[d], settings.history),
                        [*self._key, DAYS, day, 1 + d],
                    )
                    for d in range(settings.domains)
                ),
                activity_U=np.stack(lengths).sum(axis=0, dtype=np.int32),
            ),
            id_U,
        )

    def _draw(self, generator: np.random.Generator, count: int) -> Columns:
        settings = self._settings
        shape = (count, 2, settings.taste_dim)
        return {
            "weight": generator.lognormal(sigma=WEIGHT_SIGMA, size=count),
            "everywhere": generator.random(count) < settings.shared_users,
            "home": generator.integers(settings.domains, size=count),
            "blur": generator.standard_normal((count, settings.taste_dim), dtype=np.float32),
            **{f"taste_{d}": generator.standard_normal(shape, dtype=np.float32) for d in range(settings.domains)},
        }

    def _taste(self, personal_U2K: Array, domain: int, angle: float) -> Array:
        """What all users like and what each of them does, both turned: variance 1 per dimension, [U, K]."""
        settings, popular_2K = self._settings, self._popular[domain]
        share = settings.popular_taste
        popular_K = np.sqrt(share * settings.taste_dim) * turned(popular_2K[0], popular_2K[1], angle)
        personal_UK = turned(personal_U2K[:, 0], personal_U2K[:, 1], angle)
        return np.asarray(popular_K + np.sqrt(1 - share) * personal_UK, dtype=np.float32)

    def _lengths(self, weight_U: Array, member_DU: Sequence[Array], age_U: Array, day: int) -> list[Array]:
        """Events of each user before the day, by domain."""
        settings = self._settings
        generator = np.random.default_rng([*self._key, DAYS, day, 0])
        share_U = weight_U / math.exp(WEIGHT_SIGMA**2 / 2) * np.minimum(1, age_U / RAMP)
        events = [settings.target_events, *[settings.source_events] * (settings.domains - 1)]
        return [
            np.where(member_U, generator.poisson(mean * share_U), 0).astype(np.int32)
            for mean, member_U in zip(events, member_DU, strict=True)
        ]


def _popular(settings: ClockSettings, generator: np.random.Generator) -> list[Array]:
    """Two directions at right angles for each domain, between which what all users like turns, [2, K]."""
    found: list[Array] = []
    for _domain in range(settings.domains):
        first_K = direction(generator, settings.taste_dim, found[0][0] if found else None)
        found.append(np.stack([first_K, direction(generator, settings.taste_dim, first_K)]))
    return found


@dataclass(frozen=True)
class ItemsOfDay:
    """The items that are there on a day; rows name them by their place among these."""

    items: Items
    id_N: Array
    """int64."""


class ItemLives:
    """All items of a domain, or of all domains where these have the same.

    Args:
        meanings: feature to what its values mean to tastes.
        settings: of the world.
        key: seeds every draw.
    """

    def __init__(self, meanings: Mapping[str, Array], settings: ClockSettings, key: Sequence[int]) -> None:
        self._meanings, self._settings = meanings, settings
        daily = settings.daily(settings.items, settings.item_births)
        self._births = Births(key, settings.items, daily, settings.item_deaths, immortal=1)

    def on(self, day: int) -> ItemsOfDay:
        """What is there on a day."""
        settings = self._settings
        drawn = self._births.alive(day, self._draw)
        values = {column: drawn[column] for column in self._meanings}
        total_NK = sum((m[values[column]] for column, m in self._meanings.items()), np.zeros(1, dtype=np.float32))
        own = settings.ids_matter
        meaning_NK = (np.sqrt(1 - own) / np.sqrt(len(self._meanings)) * total_NK).astype(np.float32)
        quality_N = (settings.strength * np.sqrt(own) * drawn["*own"]).astype(np.float32)
        age_N = day - drawn["born"] + np.where(drawn["born"] == 0, drawn["*age"], 0.0)
        wave_N = np.sqrt(2) * np.sin(2 * np.pi * (day / drawn["*period"] + drawn["*phase"]))
        log_N = -settings.zipf * np.log1p(drawn["*rank"] * settings.items)
        log_N += settings.turning * wave_N - settings.fade * age_N
        weight_N = np.exp(log_N - log_N.max())
        popularity = Choice.among(np.arange(len(weight_N)), weight_N)
        return ItemsOfDay(Items(values, meaning_NK, quality_N, weight_N, popularity), drawn["id"])

    def _draw(self, generator: np.random.Generator, count: int) -> Columns:
        values = {c: generator.integers(len(m), size=count, dtype=np.int32) for c, m in self._meanings.items()}
        mean_age = 1 / self._settings.item_deaths if self._settings.item_deaths else 0.0
        return {
            **values,
            "*own": generator.standard_normal(count),
            "*rank": generator.random(count),
            "*period": generator.uniform(*PERIOD, size=count),
            "*phase": generator.random(count),
            "*age": generator.exponential(size=count) * mean_age,
        }
