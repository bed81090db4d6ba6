"""A recipe: what a user declares about raw logs, from which `prepare` makes rows that models read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchrec_xd.feature import Group, Kind
from torchrec_xd.prepare.engine_settings import MAX_SEED, EngineSettings
from torchrec_xd.settings import Settings
from torchrec_xd.table_types import MAX_DIM, MAX_ROWS

Format = Literal["parquet", "csv", "json", "atomic", "delta", "iceberg"]
TimeUnit = Literal["s", "ms", "us"]
CalendarPart = Literal["hour", "weekday", "day", "month", "hour_of_week"]
TotalKind = Literal["count", "sum", "share", "days_since"]
Paths = str | tuple[str, ...]


class Input(Settings):
    """Raw files: one table."""

    path: Paths
    """File, folder or glob, or a list of them; a lake table's folder. Relative paths start at the recipe's `root`."""
    format: Format | None = None
    """`atomic`: RecBole's text files with `name:type` headers; `delta` and `iceberg`: tables of a lake. Default: by the
    ending of the file name."""
    version: int | None = None
    """Delta: version; Iceberg: id of the snapshot. Default: the newest, whose files the manifest names."""
    separator: str | None = None
    """CSV: between columns. Default: a comma; atomic: a tab."""
    header: bool = True
    """CSV: the first line names the columns; else `columns` does."""
    columns: tuple[str, ...] | None = None
    """CSV without a header: names of the columns."""
    types: dict[str, str] = Field(default_factory=dict)
    """CSV and JSON: column to DuckDB type, where what the values look like is not what they are: `zip: VARCHAR`."""


class RecipeDomain(Settings):
    """One domain: which rows it has, and what is predicted for them."""

    role: Literal["source", "target"]
    """Knowledge flows from source domains to target domains."""
    rows: str
    """Input or view: one row for each thing that was shown."""
    user: str
    """Column of the user: integers or strings."""
    time: str | None = None
    """Column of the moment: timestamp, date, or a number with `time_unit`. Without it rows have no past."""
    time_unit: TimeUnit | None = None
    """Of times that are numbers, counted from 1970 in UTC."""
    labels: dict[str, str]
    """Label to the column or SQL expression of it: 0, 1, true, false; null where it is not known (`nullable`)."""
    nullable: tuple[str, ...] = ()
    """Labels that may be null in some rows: these rows do not count for them."""
    weight: str | None = None
    """Column of row weights."""
    key: tuple[str, ...] | None = None
    """Columns that tell a user's rows of one moment apart, for choices by hash. Default: those of its id features."""
    keep_negatives: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows without a positive label that is kept, chosen by hash; these get the weight 1 / share."""
    keep: tuple[str, ...] = ()
    """Columns that are passed through as they are, for slices and joins."""


class Events(Settings):
    """What happened before: histories and totals are made of it."""

    rows: str
    """Input or view: one row for each event."""
    user: str
    """Column of the user, of the same type as in the domains."""
    time: str
    """Column of the moment."""
    time_unit: TimeUnit | None = None
    """Of times that are numbers."""


class Vocabulary(Settings):
    """Values that have a row of their own in the table: the most frequent training values; row 0 is for all others."""

    min_count: PositiveInt = 1
    """Training rows that a value must occur in."""
    max_rows: int | None = Field(default=None, gt=1, le=MAX_ROWS)
    """Rows of the table at most, row 0 included."""


class History(Settings):
    """The last events of the row's user, strictly before the row's time."""

    events: str
    """Name under `events`."""
    value: str
    """Column of the events."""
    where: str | None = None
    """SQL condition on the events."""


class Total(Settings):
    """A number over events strictly before the row's time."""

    events: str
    """Name under `events`."""
    what: TotalKind
    """`count` of events; `sum` and `share` (mean) of `value`; `days_since` the last one, null where there is none."""
    by: tuple[str, ...] = Field(min_length=1)
    """Columns of both rows and events that have to be equal; `user` is the user of both."""
    value: str | None = None
    """Column or SQL expression of the events: a number, or true and false."""
    per: str | None = None
    """Column or SQL expression of the events: `share` divides the sum of `value` by its sum, as cents per piece.
    Default: by the number of events."""
    days: PositiveFloat | None = None
    """Only events of so many days before the row. Default: all."""
    where: str | None = None
    """SQL condition on the events."""

    @model_validator(mode="after")
    def _check(self) -> Total:
        if (self.what in ("sum", "share")) != (self.value is not None):
            raise ValueError(
                f"'value' belongs to every total of kind sum or share, and to no other (this is {self.what})"
            )
        if self.per is not None and self.what != "share":
            raise ValueError(f"'per' belongs to totals of kind share (this is {self.what})")
        return self


class RecipeFeature(Settings):
    """One column that models read: where it comes from, how it becomes a number, and what models do with it."""

    column: str
    """Name of the column that is written."""
    kind: Kind
    """As in a schema."""
    group: Group
    """As in a schema."""
    domains: tuple[str, ...] | None = None
    """As in a schema. Default: all."""
    table: str | None = None
    """As in a schema; features of one table share its vocabulary."""
    dim: int | None = Field(default=None, gt=0, le=MAX_DIM)
    """As in a schema."""
    pooling: Literal["sum", "mean"] = "sum"
    """As in a schema."""
    length: PositiveInt | None = None
    """Ids of a sequence at most; numbers of a vector."""
    value: str | None = None
    """Column or SQL expression of the domain's rows. Default: the column of the feature's name."""
    history: History | None = None
    """A sequence of events, instead of a `value`."""
    total: Total | None = None
    """A number over events, instead of a `value`."""
    known_before: bool = False
    """Whether the value is known when the row is shown, although a label is made of the same column: the length of a
    video whose label is whether half of it was watched."""
    calendar: CalendarPart | None = None
    """A part of the row's time in the recipe's `time_zone`, instead of a `value`."""
    separator: str | None = None
    """A bag or sequence that is written as text: what stands between its ids."""
    vocabulary: Vocabulary | None = None
    """Ids by frequency: what an id, bag or sequence becomes unless another way is named."""
    buckets: tuple[float, ...] | None = None
    """Ascending edges: row 0 for null, else 1 + the number of edges that the value has reached."""
    quantiles: int | None = Field(default=None, gt=1, le=4096)
    """So many buckets of about equal size, with edges from training rows."""
    log_buckets: int | None = Field(default=None, gt=1)
    """Edges 1, 2, 3, 4, 6, 8, 12, … up to here: two for each doubling."""
    hash: int | None = Field(default=None, gt=1, le=MAX_ROWS)
    """Rows of a table that values are hashed into; nothing is learnt."""
    as_is: int | None = Field(default=None, gt=0, le=MAX_ROWS)
    """Rows of a table whose row numbers the values are already."""
    log1p: bool = False
    """Dense: ln(1 + value), negative values mirrored."""
    standard: bool = False
    """Dense: minus the mean, divided by the standard deviation of training rows."""
    clip: tuple[float, float] | None = None
    """Dense: the least and the greatest value, before anything else."""
    missing: Literal["mean", "zero"] | float = "zero"
    """Dense: what null becomes, in the units of the raw value: the mean, 0, or a number, as 365 for a `days_since` that
    never was."""
    indicator: bool = False
    """Dense and vector: also a feature `<column>_missing`, 1 where the value is null or NaN."""


class Split(Settings):
    """Which rows are for training, for choosing settings, and for final numbers: exactly one of three ways."""

    valid: str | None = None
    """First moment of validation, ISO 8601; in the recipe's `time_zone` if it names none."""
    test: str | None = None
    """First moment of test."""
    last_share: dict[Literal["valid", "test"], float] | None = None
    """The last rows of every user: `{valid: 0.1, test: 0.1}`."""
    column: str | None = None
    """A column of all domains with the values train, valid and test."""


class Recipe(Settings):
    """From raw logs to rows: `torchrec-xd prepare RECIPE`."""

    name: str
    """Name of the data set."""
    inputs: dict[str, Input]
    """Name to raw files; a text is short for `{path: …}`."""
    views: dict[str, str] = Field(default_factory=dict)
    """Name to a query in DuckDB's SQL over inputs and earlier views."""
    many_to_many: tuple[str, ...] = ()
    """Views that mean to join tables whose keys repeat on both sides, which multiplies rows."""
    domains: dict[str, RecipeDomain]
    """The domains of the data set."""
    events: dict[str, Events] = Field(default_factory=dict)
    """Tables that histories and totals are made of."""
    features: tuple[RecipeFeature, ...]
    """What models read; the order is that of the schema."""
    split: Split
    """Training, validation, test."""
    cold_users: float = Field(default=0.0, ge=0, lt=1)
    """Share of users, chosen by hash, that training never sees; the column `cold` marks their rows."""
    activity: Total | None = None
    """The user's recent actions; metrics are also given for < 10, 10-30 and >= 30."""
    dim: int = Field(default=8, gt=0, le=MAX_DIM)
    """Width of embeddings that do not name their own."""
    time_zone: str = "UTC"
    """Of calendar parts, and of timestamps that name no zone: `Europe/Berlin`."""
    root: str = "."
    """Folder that relative paths start from, itself relative to the folder where the command runs."""
    seed: int = Field(default=0, ge=0, lt=MAX_SEED)
    """Enters every choice by hash."""
    engine: EngineSettings = EngineSettings()
    """What runs the queries."""

    @model_validator(mode="before")
    @classmethod
    def _short_inputs(cls, content: Any) -> Any:
        inputs = content.get("inputs") if isinstance(content, dict) else None
        if isinstance(inputs, dict):
            long = {name: {"path": value} if isinstance(value, str | list) else value for name, value in inputs.items()}
            content = {**content, "inputs": long}
        return content

    def calendar_features(self) -> set[str]:
        """Columns of the features that are parts of the row's time."""
        return {feature.column for feature in self.features if feature.calendar is not None}
