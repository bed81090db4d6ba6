"""Measure a data set: all aggregation is DuckDB's; no row comes to Python."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from torchrec_xd.prepare.engine import engine_errors
from torchrec_xd.prepare.profile import features, labels, leaks, overlap
from torchrec_xd.prepare.profile.findings import find
from torchrec_xd.prepare.profile.result import Profile
from torchrec_xd.prepare.profile.rows import Part, open_parts
from torchrec_xd.schema import Schema

SAMPLE_ROWS = 200_000


def measure(
    connection: Any,
    schema: Schema,
    progress: Callable[[str], None] = lambda _: None,
    *,
    calendar: Collection[str] = (),
    sample_rows: int = SAMPLE_ROWS,
    check: bool = True,
) -> Profile:
    """Measure a data set.

    Args:
        connection: an Ibis backend of DuckDB.
        schema: where its files lie, and what their columns mean.
        progress: called with a line of text for every step.
        calendar: features that are parts of the row's time: they are told by the days of a split, and do not drift.
        sample_rows: rows of each domain and split for what would take too long in all.
        check: whether columns are checked first, as training does.

    Raises:
        UserError: files or columns are missing or not as the schema says; too little memory.
    """
    with engine_errors():
        parts = open_parts(connection, schema, sample_rows, check=check)
        found = Profile(schema.name, sample_rows, {part.key: (part.rows, part.sampled()) for part in parts})
        users = {}
        for part in parts:
            progress(f"profile: {part.key}, {part.rows:,} rows")
            found.labels.extend(labels.label_counts(part))
            found.days.extend(labels.day_counts(part))
            users[part.key] = labels.count_users(part)
        ids: dict[tuple[str, str], str] = {}
        for domain in schema.domains:
            progress(f"profile: features of {domain}")
            _measure_domain([part for part in parts if part.domain == domain], users, ids, calendar, found)
        progress("profile: what domains share")
        _measure_overlap(parts, users, ids, found)
    found.drift.sort(key=lambda each: each.noise - each.psi)
    found.separations.sort(key=lambda each: -(each.auc or 0.0))
    return replace(found, findings=find(found))


def _measure_domain(
    parts: list[Part],
    users: dict[str, str],
    ids: dict[tuple[str, str], str],
    calendar: Collection[str],
    found: Profile,
) -> None:
    training = parts[0]
    assert training.split == "train"
    own = {f.column: features.words(training, f) for f in training.features if f.kind == "id"}
    ids |= {(training.domain, column): table for column, table in own.items()}
    for part in parts:
        found.features.extend(features.feature_profiles(part, own))
        found.activity.extend(labels.activity_rates(part, users[part.key], users[training.key]))
    found.drift.extend(features.drift(training, parts[1:], calendar))
    found.separations.extend(leaks.separations(training))
    found.duplicates.extend(leaks.count_duplicates(training, parts))


def _measure_overlap(parts: list[Part], users: dict[str, str], ids: dict[tuple[str, str], str], found: Profile) -> None:
    training = {part.domain: part for part in parts if part.split == "train"}
    for source in training.values():
        for target in training.values():
            roles = [part.schema.domains[part.domain].role for part in (source, target)]
            if roles == ["source", "target"]:
                splits = [part for part in parts if part.domain == target.domain]
                found.users.extend(overlap.user_overlaps(source, splits, users))
                found.tables.extend(overlap.table_overlaps(source, target, ids))
