"""What is measured of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from torchrec_xd.feature import Kind


@dataclass(frozen=True)
class LabelCount:
    """Rows of one domain and split, and what a label says of them."""

    domain: str
    split: str
    label: str
    rows: int
    labelled: int
    """Rows whose label is not null."""
    positives: int
    weighted_rate: float | None
    """Label rate with row weights; None without weights."""
    day: date | None = None
    """Of these rows, in UTC, or the first day of their month; None: of all days."""

    @property
    def rate(self) -> float | None:
        """Share of positives among the rows that have the label."""
        return self.positives / self.labelled if self.labelled else None


@dataclass(frozen=True)
class FeatureProfile:
    """One feature in one domain and split."""

    column: str
    kind: Kind
    domain: str
    split: str
    rows: int
    """Rows that were looked at."""
    distinct: int
    """Distinct values: of ids in training in all rows, else in the rows that were looked at."""
    missing: float
    """Share of rows without a value: null, or an empty list."""
    row_0: float | None
    """Of integer ids: the share that is 0, which in a prepared data set stands for null and for what training did not
    see."""
    unseen: float | None
    """Of kind id, outside of training: share of ids that occur in no training row."""
    mean: float | None = None
    """Of dense numbers, and of the Euclidean lengths of vectors; of lists: ids per row."""
    std: float | None = None
    """Standard deviation of the same."""
    percentiles: Sequence[float] = ()
    """0, 1, 50, 99 and 100 of the same."""


@dataclass(frozen=True)
class Drift:
    """How far the values of a feature in a split are from those of training."""

    column: str
    domain: str
    split: str
    psi: float
    """Population stability index."""
    noise: float
    """What it would be on average if both splits were drawn from the same rows: there is less to see in few rows."""


@dataclass(frozen=True)
class UserOverlap:
    """Users of a target domain's split that also have training rows in a source domain."""

    source: str
    target: str
    split: str
    source_users: int
    """Distinct users of the source's training rows."""
    users: int
    """Distinct users of the split."""
    shared_users: int
    rows: int
    shared_rows: int
    """Rows of the split whose user has training rows in the source."""


@dataclass(frozen=True)
class TableOverlap:
    """Ids of a shared table in the training rows of two domains, row 0 left out."""

    table: str
    source: str
    target: str
    source_ids: int
    target_ids: int
    shared_ids: int
    lookups: int
    """Ids in the target's rows."""
    shared_lookups: int
    """Of these, ids that occur in the source."""
    sampled: bool
    """Whether only a sample was looked at: then true shares are higher."""


@dataclass(frozen=True)
class Separation:
    """How well one feature alone tells positive from negative training rows."""

    column: str
    domain: str
    label: str
    auc: float | None
    """The larger of AUC and 1 - AUC for numbers; of ids, by label rates of the other half of the rows. None where
    there are too few rows of a class."""
    positives: int
    negatives: int
    known_positives: int
    """Positive rows in which the feature has a value: not null, not empty, not only row 0."""
    known_negatives: int


@dataclass(frozen=True)
class Duplicates:
    """Rows of one domain and split that are equal in user, time and all features of kind id."""

    domain: str
    split: str
    rows: int
    """Rows that were looked at: all of some users."""
    duplicates: int
    """Rows that repeat an earlier row of their split."""
    in_training: int
    """Rows that also occur in the training rows."""
    timed: bool
    """Whether rows have a time; without it a row may well occur twice."""


@dataclass(frozen=True)
class ActivityRate:
    """Rows whose user has so many training rows in the domain."""

    domain: str
    split: str
    label: str
    low: int
    high: int | None
    """The largest number; None: no bound."""
    rows: int
    positives: int

    @property
    def rate(self) -> float | None:
        """Label rate."""
        return self.positives / self.rows if self.rows else None


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at."""

    severity: Literal["error", "warning", "note"]
    """`error`: results would mean nothing; `warning`: they are likely worse than need be; `note`: to know."""
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


@dataclass(frozen=True)
class Profile:
    """A data set as numbers."""

    name: str
    sample_rows: int
    """Rows of a domain and split that are looked at where all would take too long."""
    sampled: dict[str, tuple[int, int]]
    """`domain/split` to rows, and rows that were looked at."""
    labels: list[LabelCount] = field(default_factory=list)
    days: list[LabelCount] = field(default_factory=list)
    features: list[FeatureProfile] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    """Worst first."""
    users: list[UserOverlap] = field(default_factory=list)
    tables: list[TableOverlap] = field(default_factory=list)
    separations: list[Separation] = field(default_factory=list)
    """Strongest first."""
    duplicates: list[Duplicates] = field(default_factory=list)
    activity: list[ActivityRate] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """Worst first."""
