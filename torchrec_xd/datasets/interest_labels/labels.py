"""ICL, the interest combination labels of EXIT (arXiv 2407.20121), as expressions over any logs of actions.

`y_icl = y_t + sum_k y_s^k c^k`: did the user act on the item in the target domain; did they in source k within the
label window; and is this source interest fit for the target. The paper's text in hand does not print the group test:
its ratio, smoothing, support and grouping are settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import ibis
from ibis import _
from ibis.expr.types import Table, Value
from pydantic import Field

from torchrec_xd.settings import Settings

Consistency = Literal["individual", "group", "any", "all"]
RULES: tuple[Consistency, ...] = ("individual", "group", "any", "all")
LARGEST = 10**18
"""What 64-bit queries can add to a time."""


class LabelSettings(Settings):
    """How interests are labelled."""

    window: int = Field(default=4, ge=0, le=LARGEST)
    """An action counts for an exposure if it lies at most this far before or after it, in the unit of the time column:
    four weeks are 4, 28 or 2,419,200 where that holds weeks, days or seconds."""
    consistency: Consistency = "any"
    """Which test makes a source interest fit: the user's own actions, those of the user's group, either, or both."""
    ratio: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """tau: a category fits a group whose share of target actions is at least this times its share of source actions."""
    smoothing: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """Actions by which a group's shares are drawn towards everybody's."""
    support: int = Field(default=20, ge=0, le=LARGEST)
    """Fewer actions of a group in a category, both domains together, and everybody's shares decide."""


@dataclass(frozen=True)
class LabelColumns:
    """Names of the columns that exposures and actions share; `until` belongs to exposures alone."""

    user: str
    item: str
    category: str
    """Null where unknown: then nothing fits."""
    time: str
    """Whole numbers: days, weeks, seconds …"""
    until: str
    """Actions at or after this time are unknown to the row's label: the end of its split. A few distinct values."""
    groups: tuple[str, ...]
    """What a group of users is (demographic bucket, scene); null is a value like any other."""


def interest_labels(
    exposures: Table, target: Table, sources: Mapping[str, Table], columns: LabelColumns, settings: LabelSettings
) -> Table:
    """`exposures` with the parts of their interest combination labels, all 0 or 1, int8.

    Args:
        exposures: rows of the target domain, with all of `columns`.
        target: actions in the target domain, with `columns` but for `until`.
        sources: the same for each source domain.
        columns: their names.
        settings: windows and thresholds.

    Returns:
        `exposures` plus `individual` (the user acted on the item's category in the target within the window, this
        row's own action included), and for each source k: `wanted_k` (y_s: the user acted on the item there within the
        window) and `group_k` (the user's group fits the category). `fit` combines the tests into c.
    """
    own = [columns.user, columns.category]
    individual = _acted(exposures, target, own, columns, settings.window)
    labelled = _flagged(exposures, individual, [*own, columns.time, columns.until], "individual")
    item = [columns.user, columns.item]
    for name, source in sources.items():
        wanted = _acted(exposures, source, item, columns, settings.window)
        labelled = _flagged(labelled, wanted, [*item, columns.time, columns.until], f"wanted_{name}")
        fitting = _fitting(exposures, target, source, columns, settings)
        keys = [columns.until, *columns.groups, columns.category]
        labelled = _flagged(labelled, fitting, keys, f"group_{name}")
    return labelled


def fit(source: str, consistency: Consistency) -> Value:
    """`c^k` of `interest_labels`' rows: whether the consistency test holds for a source; 0 or 1."""
    individual, group = _.individual, _[f"group_{source}"]
    tests = {
        "individual": individual,
        "group": group,
        "any": ibis.greatest(individual, group),
        "all": ibis.least(individual, group),
    }
    return tests[consistency]


def _flagged(rows: Table, found: Table, keys: list[str], name: str) -> Table:
    """`rows` plus a column that is 1 where their keys are in `found` (whose keys are distinct), else 0."""
    marks = found.select(**{f"_{key}": key for key in keys}, _found=ibis.literal(1))
    joined = rows.left_join(marks, [rows[key].identical_to(marks[f"_{key}"]) for key in keys])
    return joined.select(*rows.columns, **{name: joined._found.notnull().cast("int8")})


def _acted(exposures: Table, actions: Table, keys: list[str], columns: LabelColumns, window: int) -> Table:
    """Those distinct (keys, time, until) of exposures for which an action with the same keys lies within the window."""
    moments = exposures.select(*keys, columns.time, columns.until).distinct()
    events = actions.select(**{f"_{key}": key for key in keys}, _at=columns.time).distinct()
    same = [moments[key] == events[f"_{key}"] for key in keys]
    time, until = moments[columns.time], moments[columns.until]
    near = moments.join(events, [*same, events._at >= time - window, events._at <= time + window, events._at < until])
    return near.select(*moments.columns).distinct()


def _fitting(exposures: Table, target: Table, source: Table, columns: LabelColumns, settings: LabelSettings) -> Table:
    """Those distinct (until, groups, category) of exposures whose group acts on the category in the target too."""
    cells = exposures.select(columns.until, *columns.groups, columns.category).distinct()
    cells = cells.filter(cells[columns.category].notnull())
    cells = _with_counts(cells, target, columns, "target")
    cells = _with_counts(cells, source, columns, "source")
    for domain in ("target", "source"):
        everybody = cells[f"{domain}_category"] / cells[f"{domain}_all"].nullif(0)
        drawn = cells[f"{domain}_both"] + settings.smoothing * everybody
        within = drawn / (cells[f"{domain}_group"] + settings.smoothing).nullif(0)
        cells = cells.mutate(**{f"{domain}_everybody": everybody, f"{domain}_within": within})
    few = _.target_both + _.source_both < settings.support
    share = few.ifelse(_.target_everybody, _.target_within).fill_null(0.0)
    limit = few.ifelse(_.source_everybody, _.source_within).fill_null(0.0) * settings.ratio
    return cells.filter((share > 0) & (share >= limit))


def _with_counts(cells: Table, actions: Table, columns: LabelColumns, name: str) -> Table:
    """`cells` plus the number of actions before `until`: of the group in the category, of either, and of all."""
    until, groups, category = columns.until, list(columns.groups), columns.category
    horizons = cells.select(until).distinct()
    counted = actions.group_by([*groups, category, columns.time]).agg(_n=_.count())
    known = counted.join(horizons, counted[columns.time] < horizons[until])
    known = known.group_by([until, *groups, category]).agg(_n=_._n.sum())
    for part, keys in {"both": [*groups, category], "group": groups, "category": [category], "all": []}.items():
        sums = known.group_by([until, *keys]).agg(_n=_._n.sum()).rename("_{name}")
        cells = cells.left_join(sums, [cells[key].identical_to(sums[f"_{key}"]) for key in (until, *keys)])
        cells = cells.mutate(**{f"{name}_{part}": cells["__n"].fill_null(0)}).drop(*sums.columns)
    return cells
