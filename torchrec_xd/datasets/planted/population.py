"""Users and items of a planted world: tastes, what features mean, popularity, and what users did before the first row.

Shape legend: U users, N items, K taste dimensions, V values of a feature, C categories, L events, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.datasets.planted.settings import PopulationSettings, WorldSettings

Array = NDArray[Any]

CATEGORY, BRAND = "category", "brand"
BRANDS_PER_CATEGORY = 5
ATTRIBUTE_VALUES = 20
USER_BLOCK = 16_384
CALIBRATION_ROWS = 65_536
POISON = 1_000
"""Seeds who is turned round; domains' histories have the numbers from 1."""


def num_values(column: str, settings: PopulationSettings) -> int:
    """How many values a feature of items has."""
    return {CATEGORY: settings.categories, BRAND: settings.categories * BRANDS_PER_CATEGORY}.get(
        column, ATTRIBUTE_VALUES
    )


def draw_meaning(column: str, settings: PopulationSettings, generator: np.random.Generator) -> Array:
    """What each value of a feature means to tastes, [V, K]; its product with a taste has variance 1."""
    values_VK = generator.standard_normal((num_values(column, settings), settings.taste_dim))
    return np.asarray(values_VK / np.sqrt(settings.taste_dim), dtype=np.float32)


def sigmoid(logit_R: Array) -> Array:
    """Probabilities, float64."""
    return np.asarray(1 / (1 + np.exp(-logit_R.astype(np.float64))))


@dataclass(frozen=True)
class Choice:
    """A weighted choice among ids."""

    ids: Array
    cumulative: Array

    @staticmethod
    def among(ids: Array, weights: Array) -> Choice:
        """Chances are proportional to `weights`."""
        cumulative = np.cumsum(weights, dtype=np.float64)
        return Choice(ids.astype(np.int32), cumulative / cumulative[-1])

    def draw(self, generator: np.random.Generator, count: int) -> Array:
        """Independent draws, [R]."""
        at = np.searchsorted(self.cumulative, generator.random(count), side="right")
        return self.ids[np.minimum(at, len(self.ids) - 1)]


@dataclass(frozen=True)
class Items:
    """The items of a domain; ids ascend from the most to the least popular."""

    values: Mapping[str, Array]
    """Feature that means something -> its value for each item, [N]."""
    meaning_NK: Array
    """Mean of what the features' values mean, scaled to keep variance 1."""
    quality_N: Array
    """In units of logit."""
    weight_N: Array
    """How popular each is."""
    popularity: Choice


def draw_items(meanings: Mapping[str, Array], settings: WorldSettings, generator: np.random.Generator) -> Items:
    """Items whose features take each value with equal chance."""
    count = settings.items
    values = {column: generator.integers(len(m), size=count, dtype=np.int32) for column, m in meanings.items()}
    total_NK = sum((meaning[values[column]] for column, meaning in meanings.items()), np.zeros(1, dtype=np.float32))
    quality_N = (settings.quality * generator.standard_normal(count)).astype(np.float32)
    weights = np.arange(1, count + 1, dtype=np.float64) ** -settings.zipf
    meaning_NK = (total_NK / np.sqrt(len(meanings))).astype(np.float32)
    return Items(values, meaning_NK, quality_N, weights, Choice.among(np.arange(count), weights))


@dataclass(frozen=True)
class Users:
    """All users; domains in the order of `WorldSettings.names`."""

    taste: tuple[Array, ...]
    """Per domain, [U, K]; variance 1 per dimension."""
    member_DU: tuple[Array, ...]
    """Who is in each domain, bool [U]."""
    seen: tuple[Choice, ...]
    """Who is shown something, per domain, in training and validation."""
    tested: tuple[Choice, ...]
    """Who is shown something in the test."""
    segment_U: Array
    """The segment whose centre is nearest to the user's taste in the target, as far as it is known, int32."""
    cold_U: Array
    """Neither training rows nor history in the target, int8."""
    histories: tuple[pa.Array, ...]
    """Categories of the last events before the first row, oldest first, per domain: a list for each user."""
    activity_U: Array
    """Events of all domains, those that lists leave out included, int32."""


def draw_users(
    meaning_CK: Array,
    settings: PopulationSettings,
    key: Sequence[int],
    *,
    cold_share: float = 0.0,
    poisoned: float = 0.0,
) -> Users:
    """Users with a taste per domain, more or less the same, and their events before the first row.

    Args:
        meaning_CK: what categories mean to tastes.
        settings: of the world.
        key: seeds every draw.
        cold_share: of the users of all domains, how many are cold.
        poisoned: share of the users whose taste in the sources is turned round.
    """
    generator = np.random.default_rng([*key, 0])
    taste = _tastes(settings, generator)
    turned_U = np.random.default_rng([*key, POISON]).random(settings.users) < poisoned
    taste = (taste[0], *(np.where(turned_U[:, None], -source_UK, source_UK) for source_UK in taste[1:]))
    weight_U = generator.lognormal(sigma=0.7, size=settings.users)
    everywhere_U = generator.random(settings.users) < settings.shared_users
    home_U = generator.integers(settings.domains, size=settings.users)
    # users are in no particular order, so that the first ones can stand in where a draw leaves a domain empty
    member_U = [everywhere_U | (home_U == d) | (np.arange(settings.users) == d) for d in range(settings.domains)]
    cold_U = everywhere_U & (generator.random(settings.users) < cold_share)
    cold_U[: settings.domains] = False
    seen_U = [member_U[0] & ~cold_U, *member_U[1:]]
    events = [settings.target_events, *[settings.source_events] * (settings.domains - 1)]
    lengths = [
        np.where(seen, generator.poisson(mean * weight_U / weight_U.mean()), 0).astype(np.int32)
        for mean, seen in zip(events, seen_U, strict=True)
    ]
    ids_U = np.arange(settings.users)
    return Users(
        taste=taste,
        member_DU=tuple(member_U),
        seen=tuple(Choice.among(ids_U[seen], weight_U[seen]) for seen in seen_U),
        tested=tuple(Choice.among(ids_U[member], weight_U[member]) for member in member_U),
        segment_U=_segments(taste[0], settings.segments, generator),
        cold_U=cold_U.astype(np.int8),
        histories=tuple(
            draw_history(taste[d], meaning_CK, np.minimum(lengths[d], settings.history), [*key, 1 + d])
            for d in range(settings.domains)
        ),
        activity_U=np.stack(lengths).sum(axis=0, dtype=np.int32),
    )


def _tastes(settings: PopulationSettings, generator: np.random.Generator) -> tuple[Array, ...]:
    """A source's taste is `a target + sqrt(1 - a^2) fresh`; the target's does not depend on the agreement a."""
    agreement, dim = settings.agreement, settings.taste_dim
    target_K = direction(generator, dim)
    target_UK = _taste(target_K, settings, generator)
    tastes = [target_UK]
    for _source in range(1, settings.domains):
        fresh_UK = _taste(direction(generator, dim, target_K), settings, generator)
        tastes.append((agreement * target_UK + np.sqrt(1 - agreement**2) * fresh_UK).astype(np.float32))
    return tuple(tastes)


def _taste(popular_K: Array, settings: PopulationSettings, generator: np.random.Generator) -> Array:
    """What all users like, a unit vector, and what each of them likes: variance 1 per dimension, [U, K]."""
    share = settings.popular_taste
    personal_UK = generator.standard_normal((settings.users, settings.taste_dim), dtype=np.float32)
    taste_UK = np.sqrt(share * settings.taste_dim) * popular_K + np.sqrt(1 - share) * personal_UK
    return np.asarray(taste_UK, dtype=np.float32)


def direction(generator: np.random.Generator, dim: int, away_from: Array | None = None) -> Array:
    """A random unit vector, at right angles to another; in one dimension there is none, and zero stands for it."""
    vector_K = generator.standard_normal(dim)
    if away_from is not None:
        if dim == 1:
            return np.zeros(1)
        vector_K -= (vector_K @ away_from) * away_from
    return np.asarray(vector_K / np.linalg.norm(vector_K))


def _segments(taste_UK: Array, count: int, generator: np.random.Generator) -> Array:
    """The nearest of `count` random users' tastes; tastes are seen through noise of half their deviation."""
    centre_SK = generator.choice(taste_UK, count, axis=0)
    blocks = []
    for start in range(0, len(taste_UK), USER_BLOCK):
        block_UK = taste_UK[start : start + USER_BLOCK]
        seen_UK = block_UK + 0.5 * generator.standard_normal(block_UK.shape, dtype=np.float32)
        blocks.append(nearest(seen_UK, centre_SK))
    return np.concatenate(blocks)


def nearest(seen_UK: Array, centre_SK: Array) -> Array:
    """The nearest centre of each, int32 [U]."""
    half_square_S = (centre_SK**2).sum(axis=1) / 2
    return np.asarray((seen_UK @ centre_SK.T - half_square_S).argmax(axis=1).astype(np.int32))


def draw_history(taste_UK: Array, meaning_CK: Array, length_U: Array, key: Sequence[int]) -> pa.Array:
    """Events, each in a category with a chance proportional to `exp(1.5 taste * meaning)`."""
    blocks = []
    for number, start in enumerate(range(0, len(taste_UK), USER_BLOCK)):
        own = slice(start, start + USER_BLOCK)
        cumulative_UC = np.cumsum(np.exp(1.5 * (taste_UK[own] @ meaning_CK.T).astype(np.float64)), axis=1)
        cumulative_UC /= cumulative_UC[:, -1:]
        count = len(cumulative_UC)
        user_E = np.repeat(np.arange(count), length_U[own])
        at_E = np.random.default_rng([*key, number]).random(len(user_E))
        # one search for all users: user u's distribution covers [u, u + 1)
        cumulative_UC += np.arange(count)[:, None]
        found_E = np.searchsorted(cumulative_UC.ravel(), at_E + user_E, side="right") - user_E * len(meaning_CK)
        blocks.append(np.clip(found_E, 0, len(meaning_CK) - 1).astype(np.int32))
    offsets = np.concatenate([[0], np.cumsum(length_U, dtype=np.int64)])
    return pa.LargeListArray.from_arrays(offsets, np.concatenate(blocks))


@dataclass(frozen=True)
class Interest:
    """How likely a user clicks an item of a domain, from taste and quality alone."""

    taste_UK: Array
    """The users' taste in the domain."""
    items: Items
    """Of the domain."""
    strength: float
    """Standard deviation of the logit that taste makes."""
    bias: float = 0.0
    """What is added to every logit."""

    def calibrated(self, rate: float, seen: Choice, key: Sequence[int]) -> Interest:
        """With the bias that makes `rate` the mean probability, over users and items as they are drawn.

        Args:
            rate: mean probability.
            seen: users who are drawn.
            key: seeds the draws.
        """
        generator = np.random.default_rng(key)
        user_R, item_R = (who.draw(generator, CALIBRATION_ROWS) for who in (seen, self.items.popularity))
        return replace(self, bias=bias_for(self.logit(user_R, item_R), rate))

    def logit(self, user_R: Array, item_R: Array) -> Array:
        """Of a click, before the domain's bias, [R]."""
        liking_R = np.einsum("rk,rk->r", self.taste_UK[user_R], self.items.meaning_NK[item_R])
        return np.asarray(self.strength * liking_R + self.items.quality_N[item_R])

    def prob(self, user_R: Array, item_R: Array) -> Array:
        """Of a click, float64 [R]."""
        return sigmoid(self.logit(user_R, item_R) + self.bias)


def bias_for(logit_R: Array, rate: float) -> float:
    """What to add to the logits so that the probabilities' mean is `rate`, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logit_R + middle).mean() < rate else (low, middle)
    return (low + high) / 2
