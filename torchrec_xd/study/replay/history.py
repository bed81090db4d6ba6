"""What the slices hold, whatever is trained on them: new ids, how large tables have to be, and how features drift.

Shape legend: N values of a feature in a slice, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema, Table
from torchrec_xd.study.replay.slices import Slice

BINS = 10
SMALLEST_SHARE = 1e-4
"""Shares below it count as it in the population stability index, which is infinite for a share of 0."""


@dataclass(frozen=True)
class History:
    """By table or feature, a number for every slice."""

    unseen: dict[str, list[float | None]] = field(default_factory=dict)
    """Table to the share of its lookups whose id is in no slice before; None of the first slice, or without any."""
    ids: dict[str, list[int]] = field(default_factory=dict)
    """Table to the number of ids so far, this slice included."""
    largest: dict[str, list[int]] = field(default_factory=dict)
    """Table to the largest id so far, this slice included; -1 without any."""
    drift: dict[str, list[float | None]] = field(default_factory=dict)
    """Feature to its population stability index against the warm-up; None of the warm-up, or without any value."""


def look_at(schema: Schema, slices: Sequence[Slice], warm_up: int) -> History:
    """Read the features of all slices, one table at a time."""
    found = History({}, {}, {}, {feature.column: [] for feature in schema.features})
    for table in schema.tables():
        name, seen = table.name.removeprefix("t_"), np.zeros(0, dtype=np.int64)
        found.unseen[name], found.ids[name], found.largest[name] = [], [], []
        drifts = [_Drift(feature, schema, warm_up) for feature in table.features]
        for number, each in enumerate(slices):
            values = [drift.take(each) for drift in drifts]
            value_N = np.concatenate(values)
            new_N = ~np.isin(value_N, seen)
            found.unseen[name].append(float(new_N.mean()) if number and len(value_N) else None)
            seen = np.union1d(seen, value_N)
            found.ids[name].append(len(seen))
            found.largest[name].append(int(seen[-1]) if len(seen) else -1)
        found.drift.update({drift.feature.column: drift.found for drift in drifts})
    for feature in schema.features:
        if not feature.has_table:
            drift = _Drift(feature, schema, warm_up)
            for each in slices:
                drift.take(each)
            found.drift[feature.column] = drift.found
    return found


def rows_of_tables(schema: Schema, grows: Sequence[str], history: History) -> list[dict[str, int]]:
    """For every slice the rows of each growing table, by its name, once that slice has been trained on.

    Raises:
        UserError: a feature is unknown, has no table, or hashes its ids; or its ids go beyond the schema's rows.
    """
    tables: dict[str, Table] = {}
    for column in grows:
        feature = next((f for f in schema.features if f.column == column), None)
        with_table = [f.column for f in schema.features if f.has_table]
        if feature is None or not feature.has_table:
            raise UserError(f"grows: '{column}' is no feature with a table; these are: {', '.join(with_table)}")
        if feature.vocabulary is not None:
            raise UserError(f"grows: '{column}' has a vocabulary, so its table grows by itself; take it out")
        if feature.hash not in ("none", "drop"):
            raise UserError(
                f"grows: '{column}' has 'hash: {feature.hash}', so its ids go to other rows where their number "
                "differs; take it out, or give it ids that count up"
            )
        tables[feature.table_name] = next(t for t in schema.tables() if t.name == feature.table_name)
    for table in tables.values():
        largest = history.largest[table.name.removeprefix("t_")][-1]
        if largest >= table.rows and table.features[0].hash == "none":
            raise UserError(
                f"grows: table '{table.name.removeprefix('t_')}' has rows for ids up to {table.rows - 1}, the slices "
                f"have {largest}; set rows to {largest + 1} in the schema"
            )
    return [
        {
            name: min(table.rows, max(1, 1 + history.largest[name.removeprefix("t_")][number]))
            for name, table in tables.items()
        }
        for number in range(len(next(iter(history.largest.values()), ())))
    ]


class _Drift:
    """How a feature drifts, told slice by slice."""

    def __init__(self, feature: Feature, schema: Schema, warm_up: int) -> None:
        self.feature, self.found = feature, list[float | None]()
        self._domains = [name for name in schema.domains if feature in schema.features_of(name)]
        self._left, self._warm, self._bins = warm_up, list[Array](), _Bins(np.zeros(0), feature.has_table)

    def take(self, given: Slice) -> Array:
        """The values of the next slice, [N]."""
        parts = [given.contents[name].values(self.feature.column) for name in self._domains]
        value_N: Array = np.concatenate(parts)
        self._left -= 1
        if self._left >= 0:
            self._warm.append(value_N)
            if not self._left:
                self._bins = _Bins(np.concatenate(self._warm), self.feature.has_table)
                self._warm.clear()
        self.found.append(None if self._left >= 0 else self._bins.stability(value_N))
        return value_N


class _Bins:
    """Bins of a feature that hold equal shares of the warm-up: of ids by how frequent they are, and one for new ones.

    An id or number that is more frequent than that has a bin of its own.
    """

    def __init__(self, values_N: Array, ids: bool) -> None:
        self._ids: Array | None = None
        if ids:
            found, times = np.unique(values_N, return_counts=True)
            order = np.argsort(-times, kind="stable")
            share = (np.cumsum(times[order]) - times[order]) / max(1, len(values_N))
            self._ids, self._bin = found, np.empty(len(found), dtype=np.int64)
            self._bin[order] = (share * BINS).astype(np.int64)
            self._bins = BINS + 1
        else:
            quantiles = np.linspace(0, 1, BINS + 1)[1:-1]
            self._cuts = np.unique(np.quantile(values_N, quantiles)) if len(values_N) else np.zeros(0)
            self._bins = len(self._cuts) + 1
        self._warm_K = self._shares(values_N) if len(values_N) else None

    def stability(self, values_N: Array) -> float | None:
        """Population stability index: sum of (p - q) ln(p / q) over bins, p the shares here, q those of the warm-up."""
        if self._warm_K is None or not len(values_N):
            return None
        here_K, there_K = np.maximum(self._shares(values_N), SMALLEST_SHARE), np.maximum(self._warm_K, SMALLEST_SHARE)
        return float(((here_K - there_K) * np.log(here_K / there_K)).sum())

    def _shares(self, values_N: Array) -> Array:
        if self._ids is None:
            bin_N = np.searchsorted(self._cuts, values_N, side="left")
        else:
            place_N = np.searchsorted(self._ids, values_N).clip(max=max(0, len(self._ids) - 1))
            known_N = self._ids[place_N] == values_N if len(self._ids) else np.zeros(len(values_N), dtype=bool)
            bin_N = np.where(known_N, self._bin[place_N] if len(self._ids) else 0, BINS)
        shares: Array = np.bincount(bin_N, minlength=self._bins) / len(values_N)
        return shares
