"""Interest combination labels by loops over rows, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torchrec_xd.datasets.interest_labels.labels import LabelSettings


class Event(NamedTuple):
    """An exposure or an action."""

    user: Any
    item: Any
    category: Any
    time: int
    groups: tuple[Any, ...]


class Parts(NamedTuple):
    """The parts of a row's label in one source."""

    wanted: int
    individual: int
    group: int

    def fit(self, settings: LabelSettings) -> int:
        """`c`."""
        both = (self.individual, self.group)
        return {"individual": both[0], "group": both[1], "any": max(both), "all": min(both)}[settings.consistency]


def naive_parts(
    row: Event, until: float, target: Sequence[Event], source: Sequence[Event], settings: LabelSettings
) -> Parts:
    """What the label of one exposure is made of."""
    in_target, in_source = [a for a in target if a.time < until], [a for a in source if a.time < until]
    wanted = any(_same((a.user, a.item), (row.user, row.item)) for a in _near(row, in_source, settings))
    individual = any(_same((a.user, a.category), (row.user, row.category)) for a in _near(row, in_target, settings))
    (target_all, target_own, seen), (source_all, source_own, seen_too) = (
        _shares(row, known, settings.smoothing) for known in (in_target, in_source)
    )
    few = seen + seen_too < settings.support
    share, limit = (target_all, source_all) if few else (target_own, source_own)
    group = row.category is not None and share > 0 and share >= limit * settings.ratio
    return Parts(int(wanted), int(individual), int(group))


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return None not in one and one == other


def _near(row: Event, actions: Sequence[Event], settings: LabelSettings) -> list[Event]:
    return [action for action in actions if abs(action.time - row.time) <= settings.window]


def _shares(row: Event, known: Sequence[Event], smoothing: float) -> tuple[float, float, int]:
    """The category's share of everybody's actions, of the group's drawn towards it, and the group's actions in it."""
    both = sum(a.category == row.category and a.groups == row.groups for a in known)
    everybody = sum(a.category == row.category for a in known) / len(known) if known else 0
    members = sum(a.groups == row.groups for a in known) + smoothing
    return everybody, (both + smoothing * everybody) / members if members else 0, both
