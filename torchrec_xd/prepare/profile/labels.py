"""Rows and labels: by split, by day, by the user's activity."""

from __future__ import annotations

from collections.abc import Iterator

from torchrec_xd.prepare.profile.result import ActivityRate, LabelCount
from torchrec_xd.prepare.profile.rows import Part
from torchrec_xd.prepare.tables import quoted

ACTIVITY = (0, 1, 3, 10, 30, 100, 1000)
"""Least numbers of training rows of the groups of users."""
MAX_DAYS = 400
"""Longer times are counted by month."""


def label_counts(part: Part) -> list[LabelCount]:
    """Rows and positives of every label."""
    return list(_counts(part, None))


def day_counts(part: Part) -> list[LabelCount]:
    """The same by day, in their order; none where rows have no time."""
    day = part.day()
    if day is None:
        return []
    first, last = part.query(f"SELECT min({day}), max({day}) FROM {part.view}")[0]
    if first is None:
        return []
    return list(_counts(part, day if (last - first).days < MAX_DAYS else f"date_trunc('month', {day})::DATE"))


def _counts(part: Part, day: str | None) -> Iterator[LabelCount]:
    weight = part.schema.weight and quoted(part.schema.weight)
    columns = []
    for label in map(quoted, part.labels):
        rate = f"sum({weight} * {label}::DOUBLE) / sum({weight}) FILTER ({label} IS NOT NULL)" if weight else "NULL"
        columns.append(f"count({label}), coalesce(sum({label}::DOUBLE), 0)::BIGINT, {rate}")
    query = f"SELECT {day or 'NULL'} AS _day, count(*), {', '.join(columns)} FROM {part.view}"
    for when, rows, *found in part.query(query + (" GROUP BY 1 ORDER BY 1" if day else "")):
        for i, label in enumerate(part.labels):
            labelled, positives, rate = found[3 * i : 3 * i + 3]
            yield LabelCount(part.domain, part.split, label, rows, labelled, positives, rate, when)


def count_users(part: Part) -> str:
    """Make a table of the part's users with `rows`, and for every label `known_N` and `positive_N`; its name."""
    name = f"profile_users_{part.number}"
    labels = [
        f"count({label}) AS known_{i}, coalesce(sum({label}::DOUBLE), 0)::BIGINT AS positive_{i}"
        for i, label in enumerate(map(quoted, part.labels))
    ]
    part.connection.raw_sql(
        f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {quoted(part.schema.user)} AS user_id, "
        f"count(*) AS n, {', '.join(labels)} FROM {part.view} GROUP BY 1"
    )
    return name


def activity_rates(part: Part, users: str, training: str) -> list[ActivityRate]:
    """Label rates by the number of training rows of the user in the domain.

    Args:
        part: whose rows are counted.
        users: its table of users.
        training: the table of users of the domain's training rows.
    """
    group = " + ".join(f"(coalesce(t.n, 0) >= {low})::INTEGER" for low in ACTIVITY[1:])
    sums = [f"sum(u.known_{i})::BIGINT, sum(u.positive_{i})::BIGINT" for i in range(len(part.labels))]
    found = part.query(
        f"SELECT {group} AS place, {', '.join(sums)} FROM {users} u LEFT JOIN {training} t ON u.user_id = t.user_id "
        "GROUP BY place ORDER BY place"
    )
    bounds = [*(low - 1 for low in ACTIVITY[1:]), None]
    return [
        ActivityRate(part.domain, part.split, label, ACTIVITY[place], bounds[place], *sums[2 * i : 2 * i + 2])
        for i, label in enumerate(part.labels)
        for place, *sums in found
    ]
