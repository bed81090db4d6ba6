"""The settings of planted worlds."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from torchrec_xd.settings import Settings

TARGET = "target"
SPLITS = ("train", "valid", "test")
MAX_TEST_ROWS = 20_000_000


class PopulationSettings(Settings):
    """Users, items and tastes of every planted world."""

    domains: int = Field(default=2, ge=2, le=8)
    """One target, and this many less one sources."""
    users: int = Field(default=8_000, ge=10, le=10**8)
    """Users of all domains together."""
    shared_users: float = Field(default=0.7, ge=0, le=1)
    """Share of the users who are in all domains; every other user is in one, drawn evenly."""
    items: int = Field(default=2_000, ge=10, le=10**8)
    """Items of a domain."""
    categories: int = Field(default=40, ge=2, le=10_000)
    """Categories of items."""
    features: int = Field(default=8, ge=2, le=64)
    """Features that describe an item, its id not counted."""
    zipf: NonNegativeFloat = 0.8
    """An item's popularity is its rank to the power of minus this."""
    taste_dim: PositiveInt = 3
    """Dimensions of tastes, and of what features mean to them."""
    agreement: float = Field(default=0.8, ge=-1, le=1)
    """Correlation of what a user likes in a source with what the same user likes in the target: 1 the same, 0 nothing
    to do with each other, -1 the opposite."""
    popular_taste: float = Field(default=0.2, ge=0, le=1)
    """Share of a taste that all users of a domain have in common; it agrees between domains likewise."""
    strength: NonNegativeFloat = 1.7
    """Standard deviation of the logit that taste makes; 0 leaves nothing to learn but the quality of items."""
    click_rate: float = Field(default=0.2, gt=0, lt=1)
    """Share of rows that are clicked, in every domain of a feed and in the sources of a homepage."""
    segments: PositiveInt = 30
    """Groups of users, given as a feature: users of a segment have similar tastes in the target; 1 tells nothing."""
    target_events: NonNegativeFloat = 2.0
    """Events of an average user in the target before the first row."""
    source_events: NonNegativeFloat = 8.0
    """The same, in each source."""
    history: PositiveInt = 10
    """Length of the sequences that list a user's last events of a domain."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds everything that is drawn."""
    row_group_rows: int = Field(default=65_536, ge=1, le=2**20)
    """Rows that are drawn, and written as a row group, at a time."""
    workers: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 1)
    """Threads, a file each; no row depends on how many."""

    @property
    def names(self) -> tuple[str, ...]:
        """Domains: the target, then its sources."""
        sources = ("source", *(f"source_{number}" for number in range(2, self.domains)))
        return (TARGET, *sources[: self.domains - 1])

    def meaning(self) -> dict[str, Any]:
        """The settings that decide what lies in which file."""
        return self.model_dump(mode="json", exclude={"workers"})


class FeedItems(PopulationSettings):
    """What tells the items of a feed apart."""

    overlap: float = Field(default=0.5, ge=0, le=1)
    """Share of an item's features that are shared by all domains; at least one is (the category, which histories list),
    the others are specific to the domain."""
    noise: float = Field(default=0.5, ge=0, le=1)
    """Share of the specific features that mean nothing: drawn anew for every row."""

    @property
    def num_shared(self) -> int:
        """Shared features of an item."""
        return max(1, round(self.overlap * self.features))

    @property
    def num_noise(self) -> int:
        """Noise among the specific features of a domain."""
        return round(self.noise * (self.features - self.num_shared))


class HomepageScenes(PopulationSettings):
    """Where and when a homepage shows what users want elsewhere."""

    own_rate: float = Field(default=0.05, gt=0, lt=1)
    """Share of target rows that are clicked without any interest from a source."""
    scene_dependence: float = Field(default=0.8, ge=0, le=1)
    """Share of the transfer probability's variance (of its logit) that scenes decide; categories decide the rest."""
    transfer_strength: NonNegativeFloat = 2.5
    """Standard deviation of the transfer probability's logit; its mean is 0."""
    slots: int = Field(default=6, ge=2, le=1_000)
    """Times of day."""
    places: int = Field(default=5, ge=2, le=1_000)
    """Places on the page."""


class WorldSettings(PopulationSettings):
    """What every world without a clock has. Memory grows with users, items and test rows, never with training rows."""

    target_rows: int = Field(default=30_000, ge=1, le=10**9)
    """Training rows of the target."""
    source_ratio: PositiveFloat = 9.0
    """Training rows of all sources together, per training row of the target; sources are equally large."""
    valid_rows: int = Field(default=10_000, ge=1, le=MAX_TEST_ROWS)
    """Validation rows of every domain, and test rows of every source."""
    test_rows: int = Field(default=40_000, ge=1, le=MAX_TEST_ROWS)
    """Test rows of the target; the best possible metrics are computed on all of them, some 100 bytes of memory each."""
    quality: NonNegativeFloat = 0.3
    """Standard deviation of the logit that an item's own quality makes, which no feature but its id carries."""
    label_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of clicks that are drawn at the click rate, whatever the user and the item."""
    row_groups_per_file: PositiveInt = 16
    """Row groups in one Parquet file."""

    def rows(self, domain: int, split: str) -> int:
        """How many rows a split of a domain has."""
        if domain == 0:
            return {"train": self.target_rows, "valid": self.valid_rows, "test": self.test_rows}[split]
        per_source = max(1, round(self.target_rows * self.source_ratio / (self.domains - 1)))
        return per_source if split == "train" else self.valid_rows


class FeedSettings(FeedItems, WorldSettings):
    """A feed of different kinds of things, one kind per domain: for MKT."""

    cold_users: float = Field(default=0.0, ge=0, lt=1)
    """Share of the users of all domains who have neither training rows nor history in the target, but test rows."""

    poisoned_users: float = Field(default=0.0, ge=0, le=1)
    """Share of the users whose taste in the sources is turned round: what they like there they dislike in the target
    as much as others like it. What sources teach about them has to be filtered."""
    vector: int = Field(default=0, ge=0, le=1_024)
    """Numbers of a vector that describes each item, as a text or an image would: what the item means to tastes, in a
    space of its domain's own, under noise as large. Specific to the domain; 0: items have none."""


class HomepageSettings(HomepageScenes, WorldSettings):
    """A homepage that may show what users want elsewhere, the same items in all domains: for EXIT."""

    never_fit: float = Field(default=0.0, ge=0, le=1)
    """Share of the categories that fit no scene, whichever source they are wanted in."""
    shared_items: float = Field(default=1.0, gt=0, le=1)
    """Share of the items that sources show too; no user wants another one there."""
    members_only: bool = False
    """Whether only users of a source can want anything there (`shared_users`, and those whose one domain it is)."""
