"""Raw values of a request to the columns that training read, by a run's encoders, as `prepare` does with its engine.

A request has one value for each feature: what the recipe's `value` gives, the raw ids of a history, or the number of a
total. Parts of the calendar come from `time`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchrec_xd.data.column_types import is_string
from torchrec_xd.data.key_rows import KeyRows, hashes_of
from torchrec_xd.data.rows import Integers
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import RECIPE, Encoders, NumberEncoder, encoders_folder, load_encoders
from torchrec_xd.prepare.features import edges_of, features_of, is_read, table_of, way_of
from torchrec_xd.prepare.recipe import RecipeFeature
from torchrec_xd.prepare.recipe_file import load_recipe


class RawEncoder:
    """Encodes the raw values of one domain.

    Args:
        folder: of encoders, with their recipe.
        domain: of the rows.
        wanted: columns that the model reads, with their types as training read them.
        words: rows of the values of vocabularies, where they are mapped already; others are read from the encoders.

    Raises:
        UserError: damaged encoders, or a column that they do not make.
    """

    def __init__(
        self, folder: Path, domain: str, wanted: Mapping[str, pa.DataType], words: Mapping[str, KeyRows] | None = None
    ):
        self._folder = encoders_folder(folder)
        self._learnt: Encoders = load_encoders(self._folder)
        recipe = load_recipe(self._folder / RECIPE).recipe
        if domain not in recipe.domains:
            known = ", ".join(recipe.domains)
            raise UserError(f"{self._folder}: the recipe has no domain '{domain}'; there are: {known}")
        self._zone, self.user = recipe.time_zone, recipe.domains[domain].user
        self._wanted = dict(wanted)
        own = features_of(recipe, domain)
        self._features = {f.column: f for f in own if f.column in wanted or f"{f.column}_missing" in wanted}
        made = {*self._features, *(f"{f.column}_missing" for f in self._features.values() if f.indicator)}
        if lost := sorted(set(wanted) - made):
            raise UserError(f"{self._folder}: the recipe does not make the columns {', '.join(lost)}")
        tables = {table_of(f) for f in self._features.values() if self._has_words(f)}
        self._words = {
            name: (words or {}).get(name) or word_rows(self._folder / self._learnt.tables[name].file) for name in tables
        }
        self.types = {name: self._type(feature) for name, feature in self._features.items() if not feature.calendar}
        """Key of a request to the type of its values."""
        self.calendar = tuple(name for name, feature in self._features.items() if feature.calendar)
        """Columns that are made of the moment."""

    def of_user(self) -> tuple[str, ...]:
        """Columns whose raw value is the user."""
        read = (f for f in self._features.values() if is_read(f) and f.kind == "id" and way_of(f) == "vocabulary")
        return tuple(feature.column for feature in read if (feature.value or feature.column) == self.user)

    def encode(self, given: Mapping[str, pa.Array], unseen: Counter[str]) -> dict[str, pa.Array]:
        """The columns that training read, of raw ones of one length; those of the calendar are made by `clock`.

        Args:
            given: key to values of `types`; those of one side of a request are enough.
            unseen: where values without a row of their own are counted, by column.
        """
        made = self._looked_up(given, unseen)
        for name, values in given.items():
            if name not in made:
                made |= self._column(self._features[name], values)
        return {name: values for name, values in made.items() if name in self._wanted}

    def clock(self, name: str, moments: pa.Array) -> pa.Array:
        """A part of the calendar, for each of some moments."""
        local = pc.local_timestamp(moments.cast(pa.timestamp("us", self._zone)))
        return _part(self._features[name], local).cast(pa.int32())

    def decode(self, name: str, column: pa.Array) -> list[object]:
        """Raw values that are encoded to a column or close to it: examples of what a request may hold."""
        feature, values = self._features[name], column
        if self._has_words(feature):
            lists = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
            rows = (pc.list_flatten(values) if lists else values).fill_null(0).to_numpy().astype(np.int64)
            table = table_of(feature)
            found = _values(self._folder / self._learnt.tables[table].file, rows)
            if not lists:
                return found
            ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
            parts = [list(found[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
            text = feature.separator
            return [text.join(str(x) for x in part if x is not None) if text else part for part in parts]
        edges = edges_of(feature, self._learnt)
        if edges is not None:
            least = [None, (edges[0] - 1 if edges else 0.0), *edges]
            return [least[row or 0] for row in values.to_pylist()]
        if feature.kind == "dense":
            number = self._learnt.numbers.get(name, NumberEncoder())
            raw = values.to_numpy(zero_copy_only=False).astype(np.float64) * number.std + number.mean
            raw = np.copysign(np.expm1(np.abs(raw)), raw) if feature.log1p else raw
            return [float(f"{x:.6g}") for x in raw]
        return list(values.to_pylist())

    @staticmethod
    def _has_words(feature: RecipeFeature) -> bool:
        return feature.kind in ("id", "bag", "sequence") and way_of(feature) == "vocabulary"

    def _type(self, feature: RecipeFeature) -> pa.DataType:
        if feature.kind == "dense" or edges_of(feature, self._learnt) is not None:
            return pa.float64()
        if feature.separator is not None:
            return pa.string()
        if not self._has_words(feature):
            return self._wanted[feature.column]
        strings = self._learnt.tables[table_of(feature)].values == "string"
        word = pa.string() if strings else pa.int64()
        return word if feature.kind == "id" else pa.list_(word)

    def _looked_up(self, given: Mapping[str, pa.Array], unseen: Counter[str]) -> dict[str, pa.Array]:
        """The columns of vocabularies: the texts of all of them are hashed in one go, as are the integers."""
        flat: dict[str, tuple[pa.Array, Integers | None]] = {}
        for name, values in given.items():
            feature = self._features[name]
            if self._has_words(feature):
                flat[name] = _flat(_lists(feature, values), drop=feature.history is None)
        made = {}
        for strings in (False, True):
            own = {name: part for name, part in flat.items() if is_string(part[0].type) == strings}
            if not own:
                continue
            whole = pa.concat_arrays([values for values, _ in own.values()])
            keys = hashes_of(whole.fill_null("" if strings else 0))
            at = 0
            for name, (values, lengths) in own.items():
                rows = self._words[table_of(self._features[name])].rows(keys[at : at + len(values)])
                at += len(values)
                if values.null_count:
                    rows[values.is_null().to_numpy(zero_copy_only=False)] = 0
                if new := len(rows) - int(np.count_nonzero(rows)) - values.null_count:
                    unseen[name] += new
                made[name] = _column_of(rows, lengths, ordered=self._features[name].kind != "bag")
        return made

    def _column(self, feature: RecipeFeature, values: pa.Array) -> dict[str, pa.Array]:
        name = feature.column
        if feature.kind == "dense":
            encoder = self._learnt.numbers.get(name, NumberEncoder())
            missing = values.is_null(nan_is_null=True).cast(pa.float32())
            return {name: pa.array(standardised(_numbers(values), feature, encoder)), f"{name}_missing": missing}
        edges = edges_of(feature, self._learnt)
        if edges is not None:
            return {name: pa.array(bucket(_numbers(values), edges))}
        return {name: _lists(feature, values)}


def word_rows(path: Path) -> KeyRows:
    """The rows of the values in a file of encoders.

    Raises:
        UserError: two texts share a hash, which is as likely as rows^2 / 2^65.
    """
    table = pq.ParquetFile(path, memory_map=True).read(["value", "row"])
    try:
        return KeyRows.of(hashes_of(table["value"].combine_chunks()), table["row"].to_numpy())
    except ValueError as error:
        raise UserError(f"{path}: {error}; take one of them out of the training data") from None


def _values(path: Path, rows: Integers) -> list[object]:
    """The values of rows; None for row 0."""
    table = pq.ParquetFile(path, memory_map=True).read(["value", "row"])
    place_of_row = np.zeros(int(table["row"].to_numpy().max()) + 1, dtype=np.int64)
    place_of_row[table["row"].to_numpy()] = np.arange(len(table))
    found: list[object] = table["value"].take(place_of_row[rows]).to_pylist()
    return [value if row else None for value, row in zip(found, rows, strict=True)]


def standardised(value_B: NDArray[np.float64], feature: RecipeFeature, encoder: NumberEncoder) -> NDArray[np.float32]:
    """A dense feature as training read it; NaN is null."""
    value_B = np.where(np.isnan(value_B), encoder.missing, value_B)
    if feature.clip is not None:
        value_B = np.clip(value_B, *feature.clip)
    if feature.log1p:
        value_B = np.sign(value_B) * np.log(np.abs(value_B) + 1.0)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, which the decoder refuses
        number_B: NDArray[np.float32] = ((value_B - encoder.mean) / encoder.std).astype(np.float32)
    return number_B


def bucket(value_B: NDArray[np.float64], edges: tuple[float, ...]) -> NDArray[np.int32]:
    """Row 0 for NaN, else 1 + the number of `edges` (ascending) that the value has reached."""
    reached_B = np.searchsorted(np.asarray(edges, dtype=np.float64), value_B, side="right") + 1
    return np.where(np.isnan(value_B), 0, reached_B).astype(np.int32)


def _numbers(values: pa.Array) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return numbers


def _lists(feature: RecipeFeature, values: pa.Array) -> pa.Array:
    """Texts of several ids as lists of them, without empty ones; all else as it is."""
    if feature.separator is None:
        return values
    parts = pc.split_pattern(values, feature.separator)
    flat, lengths = _flat(parts, drop=True)
    assert lengths is not None
    kept = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(_offsets(_kept(lengths, kept)), flat.filter(pa.array(kept)))


def _flat(values: pa.Array, *, drop: bool) -> tuple[pa.Array, Integers | None]:
    """The values of lists one after the other, and how many each row has; nulls in lists may be left out."""
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return values, None
    lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
    flat = values.flatten()
    if drop and flat.null_count:
        lengths = _kept(lengths, flat.is_valid().to_numpy(zero_copy_only=False))
        flat = flat.drop_null()
    return flat, lengths


def _kept(lengths: Integers, kept: NDArray[np.bool_]) -> Integers:
    """How many values each row keeps."""
    return np.diff(np.concatenate([[0], np.cumsum(kept)])[_offsets(lengths)])


def _offsets(lengths: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _column_of(rows: Integers, lengths: Integers | None, *, ordered: bool) -> pa.Array:
    """Rows of a table as ids, or as lists of them; the ids of a bag ascend."""
    if lengths is None:
        return pa.array(rows)
    if not ordered:
        rows = rows[np.lexsort((rows, np.repeat(np.arange(len(lengths)), lengths)))]
    return pa.ListArray.from_arrays(_offsets(lengths), pa.array(rows))


def _part(feature: RecipeFeature, local: pa.Array) -> pa.Array:
    """A part of the calendar, of what the clocks of a zone show."""
    weekday, hour = pc.day_of_week(local), pc.hour(local)
    parts = {
        "hour": pc.add(hour, 1),
        "weekday": pc.add(weekday, 1),
        "day": pc.day(local),
        "month": pc.month(local),
        "hour_of_week": pc.add(pc.add(pc.multiply(weekday, 24), hour), 1),
    }
    assert feature.calendar is not None
    return parts[feature.calendar]
