"""What a person should look at, worst first, each with its remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torchrec_xd.prepare.profile.result import Drift, FeatureProfile, Finding, LabelCount, Profile, Separation

T = TypeVar("T", Drift, FeatureProfile)

LEAK_AUC = 0.98
"""A single feature that separates the labels better than this is suspected."""
CHANCE = 1e-6
"""How likely a feature would be known for rows of one class only, if it were known at random."""
LARGE_PSI = 0.25
"""The usual bound of a large change; from 0.1 it is a moderate one."""
UNSEEN = 0.2
EMPTY = 0.95
OVERLAP = 0.01
DUPLICATES = 0.01
RATE_RATIO = 1.5
RATE_DEVIATIONS = 5
"""Standard deviations that label rates of two splits have to be apart, in addition to their ratio."""
_ORDER = {"error": 0, "warning": 1, "note": 2}


def find(profile: Profile) -> list[Finding]:
    """The findings of a profile, worst first."""
    found = [
        *_labels(profile),
        *_leaks(profile),
        *_repeated(profile),
        *_overlap(profile),
        *_drift(profile),
        *_rates(profile),
        *_values(profile),
    ]
    return sorted(found, key=lambda finding: _ORDER[finding.severity])


def _labels(profile: Profile) -> Iterator[Finding]:
    for each in profile.labels:
        where = f"{each.domain}, {each.split}"
        if not each.rows:
            yield Finding("error", f"{where}: no rows", "check the split, and the paths of the schema")
        elif each.positives in (0, each.labelled):
            what = "positive" if each.positives else "negative"
            text = f"{where}: all {each.labelled:,} rows with label '{each.label}' are {what}"
            text = text if each.labelled else f"{where}: label '{each.label}' is null in all rows"
            yield Finding("error", text, "nothing can be learnt or measured there: check the label or move the split")


def _leaks(profile: Profile) -> Iterator[Finding]:
    for each in profile.separations:
        who = f"{each.domain}: feature '{each.column}'"
        if each.auc is not None and each.auc > LEAK_AUC:
            yield Finding(
                "error",
                f"{who} alone separates label '{each.label}' with an AUC of {each.auc:.3f}: it likely knows the label",
                "leave it out, or compute it of what was known strictly before the row's time",
            )
            continue
        for state, own, other in _one_class(each):
            yield Finding(
                "error",
                f"{who} is {state} in {own[0]:,} of {own[1]:,} {own[2]} training rows of label '{each.label}' and in "
                f"none of {other:,} others: it is likely written when the label is",
                "leave it out, or compute it of what was known strictly before the row's time",
            )


def _one_class(each: Separation) -> Iterator[tuple[str, tuple[int, int, str], int]]:
    """Of a feature that is known, or missing, in rows of one class only: the state, its rows, and the other class."""
    positives, negatives = each.positives, each.negatives
    if not (positives and negatives):
        return
    rate = positives / (positives + negatives)
    unknown = positives - each.known_positives, negatives - each.known_negatives
    for state, (of_positives, of_negatives) in {
        "known": (each.known_positives, each.known_negatives),
        "missing": unknown,
    }.items():
        if of_positives and not of_negatives and rate**of_positives < CHANCE:
            yield state, (of_positives, positives, "positive"), negatives
        if of_negatives and not of_positives and (1 - rate) ** of_negatives < CHANCE:
            yield state, (of_negatives, negatives, "negative"), positives


def _repeated(profile: Profile) -> Iterator[Finding]:
    for each in profile.duplicates:
        if not (each.rows and each.timed):
            continue
        if each.split != "train" and each.in_training > DUPLICATES * each.rows:
            yield Finding(
                "error",
                f"{each.domain}, {each.split}: {each.in_training / each.rows:.1%} of the rows are training rows too "
                "(equal in user, time and all ids)",
                "leave them out of one of the splits",
            )
        if each.duplicates > DUPLICATES * each.rows:
            yield Finding(
                "warning",
                f"{each.domain}, {each.split}: {each.duplicates / each.rows:.1%} of the rows repeat another one (equal "
                "in user, time and all ids)",
                "keep one of each (SQL: SELECT DISTINCT), unless the same thing was really shown twice at once",
            )


def _overlap(profile: Profile) -> Iterator[Finding]:
    for user in profile.users:
        if user.rows and user.split == "train" and user.shared_rows < OVERLAP * user.rows:
            yield Finding(
                "warning",
                f"{user.target}: {user.shared_rows / user.rows:.2%} of the training rows are of users with training "
                f"rows in {user.source}: what is learnt of a user there is of little use here",
                "check that both domains write a user the same way, or rely on what else they share",
            )
    for table in profile.tables:
        if table.lookups and table.shared_lookups < OVERLAP * table.lookups:
            yield Finding(
                "warning",
                f"table '{table.table}': {table.shared_lookups / table.lookups:.2%} of the ids in the rows of "
                f"{table.target} occur in those of {table.source}, though both look them up there",
                "check that both domains write an id the same way; if they mean different things, give each its own "
                "'table'",
            )


def _drift(profile: Profile) -> Iterator[Finding]:
    unseen = set()
    for (domain, column), features in _by_feature(profile.features).items():
        # Row 0 of training rows is no news: rare values, or null.
        usual = next((each.row_0 or 0.0 for each in features if each.split == "train"), 0.0)
        shares = {e.split: max(e.unseen or 0.0, (e.row_0 or 0.0) - usual) for e in features if e.split != "train"}
        split = max(shares, key=lambda name: shares[name], default="")
        if split and shares[split] > UNSEEN:
            unseen.add((domain, column))
            yield Finding(
                "warning",
                f"{domain}: {shares[split]:.0%} of the values of '{column}' in {split} were not in training",
                "train on more or later days, lower 'min_count', or add features that new values share with old ones",
            )
    for (domain, column), found in _by_feature(profile.drift).items():
        worst = max(found, key=lambda each: each.psi - each.noise)
        if worst.psi - worst.noise > LARGE_PSI and (domain, column) not in unseen:
            yield Finding(
                "warning",
                f"{domain}: feature '{column}' drifts from train to {worst.split}: PSI {worst.psi:.2f}, large from "
                f"{LARGE_PSI}",
                "check how it is made in both; if it grows with time, use a share, a window or the time since instead",
            )


def _by_feature(found: Sequence[T]) -> dict[tuple[str, str], list[T]]:
    groups: dict[tuple[str, str], list[T]] = {}
    for each in found:
        groups.setdefault((each.domain, each.column), []).append(each)
    return groups


def _rates(profile: Profile) -> Iterator[Finding]:
    training = {(each.domain, each.label): each for each in profile.labels if each.split == "train"}
    for each in profile.labels:
        first = training.get((each.domain, each.label))
        if first and first is not each and _differ(first, each):
            yield Finding(
                "warning",
                f"{each.domain}: the rate of label '{each.label}' is {first.rate:.2%} in train and {each.rate:.2%} in "
                f"{each.split}",
                "check the label by day: late labels, another sampling or a changed product; calibration will suffer",
            )


def _differ(one: LabelCount, two: LabelCount) -> bool:
    if not (one.rate and two.rate):
        return False
    ratio = max(one.rate / two.rate, two.rate / one.rate)
    variance = sum(each.rate * (1 - each.rate) / each.labelled for each in (one, two) if each.rate)
    return ratio > RATE_RATIO and abs(one.rate - two.rate) > RATE_DEVIATIONS * math.sqrt(variance)


def _values(profile: Profile) -> Iterator[Finding]:
    for each in profile.features:
        if each.split != "train" or not each.rows:
            continue
        who = f"{each.domain}: feature '{each.column}'"
        if each.distinct <= 1 and each.kind != "vector":
            yield Finding(
                "warning", f"{who} has one value in all training rows", "leave it out, or check how it is made"
            )
        elif max(each.missing, each.row_0 or 0.0) > EMPTY:
            what = "null or empty" if each.missing > EMPTY else "row 0"
            share = max(each.missing, each.row_0 or 0.0)
            yield Finding("note", f"{who} is {what} in {share:.1%} of training", "check how it is made and joined")
