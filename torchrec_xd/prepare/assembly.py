"""Raw values of a domain's rows to the columns that are written: ids, lists of ids, numbers, vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ibis
import ibis.expr.datatypes as dt
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.prepare.as_of import PastTotal, history_as_of, totals_as_of
from torchrec_xd.prepare.encoders import Encoders, NumberEncoder
from torchrec_xd.prepare.features import edges_of, features_of, is_read, table_of, way_of
from torchrec_xd.prepare.learning import standardised, values_of
from torchrec_xd.prepare.recipe import Recipe, RecipeFeature
from torchrec_xd.prepare.rows import totals_of
from torchrec_xd.prepare.tables import Tables

CALENDAR_ROWS = {"hour": 25, "weekday": 8, "day": 32, "month": 13, "hour_of_week": 169}
"""Rows of the tables of calendar parts; row 0 is for rows without a time."""
_INT32 = dt.int32(nullable=False)
"""DuckDB's parts of times have 64 bits, which Ibis does not know: it would leave out a cast to int32 proper."""


def rows_of(feature: RecipeFeature, encoders: Encoders) -> int:
    """Rows of the embedding table of a feature."""
    edges = edges_of(feature, encoders)
    if edges is not None:
        return len(edges) + 2
    if feature.calendar is not None:
        return CALENDAR_ROWS[feature.calendar]
    return feature.hash or feature.as_is or encoders.tables[table_of(feature)].rows


TotalGroup = tuple[str, tuple[str, ...]]
"""Name of the events, and what is equal in them and the row."""


def total_groups(recipe: Recipe, domain: str) -> dict[TotalGroup, dict[str, PastTotal]]:
    """The totals of a domain, by what they are made of: one sort for each group."""
    found: dict[TotalGroup, dict[str, PastTotal]] = {}
    for column, (total, _place) in totals_of(recipe, domain).items():
        past = PastTotal(
            total.what,
            f"x_{column}" if total.value is not None else None,
            f"w_{column}" if total.where is not None else None,
            total.days,
            f"p_{column}" if total.per is not None else None,
        )
        found.setdefault((total.events, total.by), {})[column] = past
    return found


def totals(rows: Table, events: Table, by: tuple[str, ...], wanted: Mapping[str, PastTotal]) -> Table:
    """`_row` and `t_FEATURE` for each of a group's totals."""
    keys = ["_user" if name == "user" else f"b_{name}" for name in by]
    return totals_as_of(rows, events, keys, {f"t_{column}": total for column, total in wanted.items()})


@dataclass(frozen=True)
class Assembler:
    """Makes the rows that are written of rows with raw values.

    Args:
        tables: of the engine.
        recipe: what features are.
        encoders: what was learnt.
        words: vocabulary of each table, columns `value` and `row`.
    """

    tables: Tables
    recipe: Recipe
    encoders: Encoders
    words: Mapping[str, Table]

    def __call__(
        self, domain: str, rows: Table, events: Callable[[str], Table], known: list[Table]
    ) -> tuple[Table, dict[str, Value]]:
        """The rows with all that features are made of, and the features that are written, as expressions over them.

        Args:
            domain: of the rows.
            rows: from `domain_rows`, numbered.
            events: gives the events of a name, those of the rows' users at least.
            known: tables of `_row` and totals that are computed already.
        """
        own = features_of(self.recipe, domain)
        done = {column for table in known for column in table.columns}
        joined = list(known)
        for (name, by), wanted in total_groups(self.recipe, domain).items():
            if not {f"t_{column}" for column in wanted} <= done:
                joined.append(totals(rows, events(name), by, wanted))
        joined += self._histories(own, rows, events)
        for feature in own:
            if is_read(feature) and feature.kind in ("bag", "sequence") and way_of(feature) == "vocabulary":
                joined.append(self._lists(rows, feature))
        for number, table in enumerate(joined):  # computed one by one: DuckDB plans all in one badly
            rows = rows.left_join(self.tables.temporary(f"_joined_{number}", table), "_row").drop("_row_right")
        rows = self.tables.named("_joined", rows)
        for feature in own:
            if feature.kind == "id" and is_read(feature) and way_of(feature) == "vocabulary":
                rows = self._words(rows, f"v_{feature.column}", feature)
        rows = self.tables.named("_encoded", rows)
        columns: dict[str, Value] = {}
        for feature in own:
            columns |= self._columns(rows, feature)
        return rows, columns

    def _words(self, rows: Table, column: str, feature: RecipeFeature) -> Table:
        """`rows` with `i_FEATURE`: the embedding row of a value, 0 for what the vocabulary lacks."""
        words = self.words[table_of(feature)].select(_value="value", _found="row")
        kind = words._value.type()
        joined = rows.left_join(words, rows[column].cast(kind) == words._value)
        return joined.mutate(**{f"i_{feature.column}": joined._found.fill_null(0)}).drop("_value", "_found")

    def _lists(self, rows: Table, feature: RecipeFeature) -> Table:
        """`_row` and `i_FEATURE`: lists of embedding rows; a bag in their order, a sequence in its own."""
        own = rows.select("_row", value=values_of(self.tables, rows, feature)).unnest(
            "value", offset="place", keep_empty=False
        )
        own = self._words(own.filter(own.value.notnull()), "value", feature)
        name = f"i_{feature.column}"
        if feature.kind == "bag":
            return own.group_by("_row").agg(**{name: own[name].collect().sort()})
        pairs = ibis.struct({"place": own.place, "id": own[name]}).collect().sort()
        return own.group_by("_row").agg(_pairs=pairs).select("_row", **{name: _._pairs.map(lambda pair: pair["id"])})

    def _histories(self, own: list[RecipeFeature], rows: Table, events: Callable[[str], Table]) -> list[Table]:
        """`_row` and `i_FEATURE` of histories; those of the same events, condition and length in one go."""
        groups: dict[tuple[str, str | None, int], list[RecipeFeature]] = {}
        for feature in own:
            if feature.history is not None:
                assert feature.length is not None
                key = (feature.history.events, feature.history.where, feature.length)
                groups.setdefault(key, []).append(feature)
        found = []
        for (name, where, length), features in groups.items():
            past = events(name)
            if where is not None:
                past = past.filter(past[f"w_{features[0].column}"])
            for feature in features:
                column = f"h_{feature.column}"
                if way_of(feature) == "vocabulary":
                    past = self._words(past, column, feature)
                else:
                    past = past.mutate(**{f"i_{feature.column}": past[column]})
            columns = [f"i_{feature.column}" for feature in features]
            found.append(history_as_of(rows, past, ["_user"], length, columns))
        return found

    def _columns(self, rows: Table, feature: RecipeFeature) -> dict[str, Value]:
        """The columns that a feature is written as."""
        name, way = feature.column, way_of(feature)
        if feature.kind == "dense":
            raw = rows[f"t_{name}" if feature.total else f"v_{name}"]
            encoder = self.encoders.numbers.get(name, NumberEncoder())
            column = {name: standardised(raw, feature, encoder)}
            return column | ({f"{name}_missing": is_missing(raw).cast("float32")} if feature.indicator else {})
        if feature.kind == "vector":
            return {name: rows[f"v_{name}"].cast("array<float32>")}
        if feature.calendar is not None:
            return {name: self._calendar(rows, feature)}
        if feature.history is not None or way == "vocabulary":
            return {name: rows[f"i_{name}"]}
        raw = rows[f"t_{name}" if feature.total else f"v_{name}"]
        edges = edges_of(feature, self.encoders)
        if edges is None:
            return {name: values_of(self.tables, rows, feature) if feature.separator else raw}
        return {name: bucket(raw, edges)}

    def _calendar(self, rows: Table, feature: RecipeFeature) -> Value:
        clock = self.tables.clock(rows._time, self.recipe.time_zone)
        parts = {
            "hour": lambda: clock.hour() + 1,
            "weekday": lambda: clock.day_of_week.index() + 1,
            "day": clock.day,
            "month": clock.month,
            "hour_of_week": lambda: clock.day_of_week.index() * 24 + clock.hour() + 1,
        }
        assert feature.calendar is not None
        return parts[feature.calendar]().cast(_INT32)


def is_missing(value: Value) -> Value:
    """Whether a value is null, or NaN, which many logs have in its place."""
    return value.isnull() | value.isnan() if value.type().is_floating() else value.isnull()


def bucket(value: Value, edges: tuple[float, ...]) -> Value:
    """Row 0 for null and NaN, else 1 + the number of `edges` (ascending) that the value has reached."""
    reached = [(value >= edge, place + 2) for place, edge in enumerate(edges)]
    return ibis.cases((is_missing(value), 0), *reversed(reached), else_=1).cast("int32")
