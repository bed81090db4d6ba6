"""What values features have, and how far those of other splits are from training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from torchrec_xd.feature import Feature
from torchrec_xd.prepare.profile.result import Drift, FeatureProfile
from torchrec_xd.prepare.profile.rows import Part, is_list
from torchrec_xd.prepare.tables import literal, quoted

PERCENTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
FEW_VALUES = 50
"""Up to so many values each is a bucket of its own."""
RANGES = 20
UNSEEN = "0"
"""Bucket of id 0."""
RARE = 0.01
"""Share of training rows."""


def words(part: Part, feature: Feature) -> str:
    """Make a table of a feature's ids with their number `n`, of lists in the sample; its name."""
    name = f"profile_ids_{part.number}_{part.features.index(feature)}"
    column = quoted(feature.column)
    values = f"SELECT unnest({column}) AS id FROM {part.sample}" if is_list(feature) else ""
    part.connection.raw_sql(
        f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT id, count(*) AS n FROM "
        f"({values or f'SELECT {column} AS id FROM {part.view}'}) WHERE id IS NOT NULL GROUP BY id"
    )
    return name


def feature_profiles(part: Part, training: dict[str, str]) -> Iterator[FeatureProfile]:
    """Every feature of a part.

    Args:
        part: whose rows are looked at.
        training: feature of kind id to the table of its ids in the domain's training rows.
    """
    sampled = part.sampled()
    for feature in part.features if part.rows else ():
        yield _feature_profile(part, feature, sampled, training.get(feature.column))


def _feature_profile(part: Part, feature: Feature, rows: int, training: str | None) -> FeatureProfile:
    column = quoted(feature.column)
    number = column if not feature.has_table else f"coalesce(len({column}), 0)"
    missing = f"{column} IS NULL" + (f" OR len({column}) = 0" if is_list(feature) else "")
    statistics = f"avg({number}), stddev_pop({number}), quantile_cont({number}, {literal(list(PERCENTILES))})"
    if feature.kind == "id":
        statistics = "NULL, NULL, NULL"
    share, *measured = part.query(f"SELECT avg(({missing})::INTEGER), {statistics} FROM {part.sample}")[0]
    zeros, unseen = None, None
    if feature.has_table and part.is_integer(feature):
        zeros = part.query(f"SELECT avg((id = 0)::INTEGER) FROM ({values(part, feature)}) WHERE id IS NOT NULL")[0][0]
    if training is not None and part.split != "train":
        unseen = part.query(
            f"SELECT avg((t.id IS NULL)::INTEGER) FROM {part.sample} s LEFT JOIN {training} t ON s.{column} = t.id "
            f"WHERE s.{column} IS NOT NULL"
        )[0][0]
    if training is not None and part.split == "train":
        distinct = part.query(f"SELECT count(*) FROM {training}")[0][0]
    else:
        distinct = part.query(f"SELECT count(DISTINCT id) FROM ({values(part, feature)})")[0][0]
    mean, std, percentiles = measured
    return FeatureProfile(
        feature.column,
        feature.kind,
        part.domain,
        part.split,
        rows,
        distinct,
        share or 0.0,
        zeros,
        unseen,
        mean,
        std,
        tuple(percentiles or ()),
    )


def values(part: Part, feature: Feature) -> str:
    """A query for the values `id` of a feature in the sample; rows with an empty list have a null."""
    column = quoted(feature.column)
    if is_list(feature):
        filled = f"CASE WHEN len({column}) > 0 THEN {column} ELSE [NULL] END"
        return f"SELECT unnest({filled}) AS id FROM {part.sample}"
    return f"SELECT {column} AS id FROM {part.sample}"


def drift(training: Part, others: list[Part], left_out: Collection[str] = ()) -> list[Drift]:
    """Population stability index of the features of a domain between training and other splits.

    With p and q the shares of a bucket's values in training and in the other split it is the sum of (q - p) ln(q / p).
    Buckets: null; each value where training has at most 50; else 20 ranges of about equal share in training (of
    strings, of their hashes), and id 0. Id 0 is left out where training has next to none: it is what training did not
    see, which `FeatureProfile.row_0` tells.
    """
    found = []
    for feature in training.features if training.rows else ():
        if feature.column in left_out:
            continue
        bucket = _bucket(training, feature)
        expected = _counts(training, feature, bucket)
        rare = expected.get(UNSEEN, 0) < RARE * sum(expected.values())
        unseen = UNSEEN if rare and feature.has_table and training.is_integer(feature) else ""
        for other in others:
            if other.rows:
                psi, buckets = _stability(expected, _counts(other, feature, bucket), unseen)
                noise = (buckets - 1) * (1 / training.sampled() + 1 / other.sampled())
                found.append(Drift(feature.column, training.domain, other.split, psi, noise))
    return found


def _bucket(training: Part, feature: Feature) -> str:
    """SQL for the bucket of a value `id`."""
    rows = values(training, feature)
    if training.query(f"SELECT count(DISTINCT id) FROM ({rows})")[0][0] <= FEW_VALUES:
        return "id::VARCHAR"
    number = "id" if not feature.has_table or training.is_integer(feature) else "hash(id)"
    shares = literal([i / RANGES for i in range(1, RANGES)])
    edges = training.query(f"SELECT quantile_disc({number}, {shares}) FROM ({rows}) WHERE id IS NOT NULL")[0][0]
    above_0 = {1} if feature.has_table and number == "id" else set()
    passed = [f"({number} >= {edge!r})::INTEGER" for edge in sorted({*edges, *above_0})]
    return f"CASE WHEN id IS NOT NULL THEN {' + '.join(passed)} END::VARCHAR"


def _counts(part: Part, feature: Feature, bucket: str) -> dict[str | None, int]:
    return dict(part.query(f"SELECT {bucket} AS place, count(*) FROM ({values(part, feature)}) GROUP BY place"))


def _stability(expected: dict[str | None, int], found: dict[str | None, int], left_out: str) -> tuple[float, int]:
    """The index, and the number of buckets. Half a row in every bucket keeps it finite."""
    buckets = sorted({*expected, *found} - {left_out}, key=str)
    ps, qs = _shares(expected, buckets), _shares(found, buckets)
    return sum((q - p) * math.log(q / p) for p, q in zip(ps, qs, strict=True)), len(buckets)


def _shares(counts: dict[str | None, int], buckets: list[str | None]) -> list[float]:
    total = sum(counts.get(bucket, 0) for bucket in buckets) + len(buckets) / 2
    return [(counts.get(bucket, 0) + 0.5) / total for bucket in buckets]
