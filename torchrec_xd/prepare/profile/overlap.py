"""What domains share: users, and ids of shared tables."""

from __future__ import annotations

from collections.abc import Mapping

from torchrec_xd.feature import Feature
from torchrec_xd.prepare.profile.features import words
from torchrec_xd.prepare.profile.result import TableOverlap, UserOverlap
from torchrec_xd.prepare.profile.rows import Part, is_list


def user_overlaps(source: Part, others: list[Part], users: Mapping[str, str]) -> list[UserOverlap]:
    """Users of a target domain's splits that have rows in the training split of a source domain.

    Args:
        source: the training rows of the source.
        others: the splits of the target.
        users: `domain/split` to its table of users.
    """
    own = users[source.key]
    count = source.query(f"SELECT count(*) FROM {own}")[0][0]
    found = []
    for part in others:
        numbers = part.query(
            "SELECT count(*), count(s.user_id), coalesce(sum(t.n), 0)::BIGINT, "
            f"coalesce(sum(t.n) FILTER (s.user_id IS NOT NULL), 0)::BIGINT FROM {users[part.key]} t "
            f"LEFT JOIN {own} s ON s.user_id::VARCHAR = t.user_id::VARCHAR"
        )[0]
        found.append(UserOverlap(source.domain, part.domain, part.split, count, *numbers))
    return found


def table_overlaps(source: Part, target: Part, ids: Mapping[tuple[str, str], str]) -> list[TableOverlap]:
    """Ids of the tables that features of two domains look up.

    Args:
        source: training rows.
        target: training rows.
        ids: (domain, column) to the table of ids in the domain's training rows; others are made.
    """
    found = []
    for table in source.schema.tables():
        own, other = ([f for f in part.features if f in table.features] for part in (source, target))
        if not (own and other):
            continue
        one, two = _union(source, own, ids), _union(target, other, ids)
        ids_one, ids_two, shared, lookups, known = source.query(
            f"WITH one AS ({one}), two AS ({two}) SELECT (SELECT count(*) FROM one), count(*), count(one.id), "
            "coalesce(sum(two.n), 0)::BIGINT, coalesce(sum(two.n) FILTER (one.id IS NOT NULL), 0)::BIGINT "
            "FROM two LEFT JOIN one ON one.id = two.id"
        )[0]
        sampled = any(
            part.sampled() < part.rows and is_list(feature)
            for part, features in ((source, own), (target, other))
            for feature in features
        )
        name = table.name.removeprefix("t_")
        found.append(
            TableOverlap(name, source.domain, target.domain, ids_one, ids_two, shared, lookups, known, sampled)
        )
    return found


def _union(part: Part, features: list[Feature], ids: Mapping[tuple[str, str], str]) -> str:
    """A query for the distinct ids of features as texts, with their number."""
    tables = [ids.get((part.domain, feature.column)) or words(part, feature) for feature in features]
    rows = [
        f"SELECT id::VARCHAR AS id, n FROM {table}" + (" WHERE id <> 0" if part.is_integer(feature) else "")
        for table, feature in zip(tables, features, strict=True)
    ]
    return f"SELECT id, sum(n) AS n FROM ({' UNION ALL '.join(rows)}) GROUP BY id"
