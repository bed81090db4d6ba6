"""Suspects of leakage, and rows that occur twice."""

from __future__ import annotations

from torchrec_xd.feature import Feature
from torchrec_xd.prepare.profile.result import Duplicates, Separation
from torchrec_xd.prepare.profile.rows import TIME, Part, is_list
from torchrec_xd.prepare.tables import quoted

PRIOR_ROWS = 10
"""Rows at the mean label rate that are added to those of every id."""
FEWEST = 20
"""Rows of each class that an AUC needs."""
DUPLICATE_ROWS = 1_000_000
"""Larger domains: all rows of some users, about so many."""


def separations(part: Part) -> list[Separation]:
    """How well each feature alone separates the labels of a sample of training rows."""
    return [_separation(part, feature, label) for feature in part.features for label in part.labels]


def _separation(part: Part, feature: Feature, label: str) -> Separation:
    y, column = f"{quoted(label)}::DOUBLE", quoted(feature.column)
    known = f"{column} IS NOT NULL"
    if feature.has_table and part.is_integer(feature):
        known += f" AND list_max({column}) > 0" if is_list(feature) else f" AND {column} <> 0"
    elif is_list(feature):
        known += f" AND len({column}) > 0"
    counts = part.query(
        f"SELECT count(*) FILTER (y = 1), count(*) FILTER (y = 0), count(*) FILTER (y = 1 AND known), "
        f"count(*) FILTER (y = 0 AND known) FROM (SELECT {y} AS y, ({known}) AS known FROM {part.sample})"
    )[0]
    scores = _rates(part, feature, y) if feature.has_table else f"SELECT {column} AS score, {y} AS y FROM {part.sample}"
    auc = _auc(part, scores)
    if auc is not None and not feature.has_table:
        auc = max(auc, 1 - auc)
    return Separation(feature.column, part.domain, label, auc, *counts)


def _rates(part: Part, feature: Feature, y: str) -> str:
    """A query for the score of rows of one half: the mean label rate of their ids in the other half."""
    column = quoted(feature.column)
    ids = f"unnest({column})" if is_list(feature) else column
    return (
        f"WITH ids AS (SELECT rowid AS _row, _half, {y} AS y, {ids} AS id FROM {part.sample} WHERE {y} IS NOT NULL), "
        "prior AS (SELECT avg(y) AS mean FROM ids WHERE _half = 0), "
        f"rates AS (SELECT id, (sum(y) + {PRIOR_ROWS} * any_value(mean)) / (count(*) + {PRIOR_ROWS}) AS rate "
        "FROM ids, prior WHERE _half = 0 GROUP BY id) "
        "SELECT any_value(ids.y) AS y, avg(coalesce(rate, mean)) AS score "
        "FROM ids LEFT JOIN rates ON ids.id = rates.id, prior WHERE _half = 1 GROUP BY _row"
    )


def _auc(part: Part, scores: str) -> float | None:
    """Area under the ROC curve, ties counting half; None with too few rows of a class."""
    pairs, positives, negatives = part.query(
        f"WITH scores AS ({scores}), points AS (SELECT score, sum(y) AS p, sum(1 - y) AS q FROM scores "
        "WHERE score IS NOT NULL AND y IS NOT NULL GROUP BY score), "
        "ranked AS (SELECT p, q, sum(q) OVER (ORDER BY score ROWS UNBOUNDED PRECEDING) - q / 2 AS below FROM points) "
        "SELECT coalesce(sum(p * below), 0), coalesce(sum(p), 0), coalesce(sum(q), 0) FROM ranked"
    )[0]
    return pairs / (positives * negatives) if min(positives, negatives) >= FEWEST else None


def count_duplicates(training: Part, parts: list[Part]) -> list[Duplicates]:
    """Rows that are equal in user, time and all features of kind id, in each split and in the training rows too.

    Args:
        training: of the domain.
        parts: all splits of the domain.
    """
    timed = all(TIME in part.types for part in parts)
    names = [training.schema.user, *([TIME] if timed else [])]
    names += [feature.column for feature in training.features if feature.kind == "id"]
    user = quoted(training.schema.user)
    one_in = max(1, sum(part.rows for part in parts) // DUPLICATE_ROWS)
    where = f"WHERE hash({user}::VARCHAR) % {one_in} = 0" if one_in > 1 else ""
    key = ", ".join(f"{quoted(name)}::VARCHAR" if name == training.schema.user else quoted(name) for name in names)
    rows = " UNION ALL ".join(
        f"SELECT {part.number} AS part, hash({key}) AS key FROM {part.view} {where}" for part in parts
    )
    found = training.query(
        f"WITH counted AS (SELECT part, key, count(*) AS n FROM ({rows}) GROUP BY part, key), "
        f"train AS (SELECT key FROM counted WHERE part = {training.number}) "
        "SELECT part, sum(n)::BIGINT, sum(n - 1)::BIGINT, coalesce(sum(n) FILTER (train.key IS NOT NULL), 0)::BIGINT "
        "FROM counted LEFT JOIN train ON train.key = counted.key GROUP BY part"
    )
    numbers = {number: (rows, again, train) for number, rows, again, train in found}
    return [
        Duplicates(part.domain, part.split, rows, again, train, timed)
        for part in parts
        for rows, again, train in [numbers.get(part.number, (0, 0, 0))]
    ]
