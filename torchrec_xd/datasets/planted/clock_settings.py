"""The settings of planted worlds with a clock."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from torchrec_xd.datasets.planted.settings import MAX_TEST_ROWS, FeedItems, HomepageScenes, PopulationSettings

MAX_DAYS = 10_000


class ClockSettings(PopulationSettings):
    """What every world with a clock has. A day needs no other day; its memory grows with who lives then alone.

    Users and items are born and leave for good; ids go up with birth and are never used again. `users` and `items` are
    those of the first day.
    """

    days: int = Field(default=30, ge=1, le=MAX_DAYS)
    """Days that are written; the rows of a day do not depend on how many."""
    test_days: int = Field(default=0, ge=0)
    """The last so many of them are the split `test`; the others are `train`."""
    target_rows: int = Field(default=5_000, ge=1, le=MAX_TEST_ROWS)
    """Rows of the target, each day; the best possible metrics are computed on all of them, as `days.json` says."""
    source_ratio: PositiveFloat = 4.0
    """Rows of all sources together, per row of the target; sources are equally large."""
    user_births: float = Field(default=0.02, ge=0, le=1)
    """Users born each day, as a share of those of the first day."""
    user_deaths: float = Field(default=0.02, ge=0, lt=1)
    """Chance of a user to leave for good, each day."""
    item_births: float = Field(default=0.04, ge=0, le=1)
    """Items born each day in each domain, as a share of those of the first day."""
    item_deaths: float = Field(default=0.04, ge=0, lt=1)
    """Chance of an item to be taken away, each day."""
    fade: NonNegativeFloat = 0.02
    """How much of its popularity an item loses with each day of age, in units of the logarithm."""
    turning: NonNegativeFloat = 0.5
    """Standard deviation of what comes and goes of an item's popularity over weeks, in units of the logarithm."""
    drift: NonNegativeFloat = 0.02
    """Angle by which tastes turn each day, in radians: after n days they correlate with themselves by cos(n drift)."""
    ids_matter: float = Field(default=0.3, ge=0, le=1)
    """Share of the variance of a click's logit that an item's own effect makes, which only its id tells. 0: features
    say all there is to know; 1: ids do."""

    def rows(self, domain: int) -> int:
        """Rows of a domain, each day."""
        return (
            self.target_rows
            if domain == 0
            else max(1, round(self.target_rows * self.source_ratio / (self.domains - 1)))
        )

    def daily(self, first: int, births: float) -> int:
        """How many are born each day after the first, on which there are `first`."""
        return round(first * births)

    @property
    def users_ever(self) -> int:
        """Ids of users in all days."""
        return self.users + self.daily(self.users, self.user_births) * (self.days - 1)

    @property
    def items_ever(self) -> int:
        """Ids of a domain's items in all days."""
        return self.items + self.daily(self.items, self.item_births) * (self.days - 1)

    @model_validator(mode="after")
    def _leave_a_day_to_train_on(self) -> ClockSettings:
        if self.test_days >= self.days:
            raise ValueError(
                f"test_days: {self.test_days} of {self.days} days leave none to train on; at most {self.days - 1}"
            )
        return self


class FeedClockSettings(FeedItems, ClockSettings):
    """A feed of different kinds of things over days, one kind per domain."""


class HomepageClockSettings(HomepageScenes, ClockSettings):
    """A homepage over days, the same items in all domains."""
