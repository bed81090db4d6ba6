"""What the values of a column are like, by a sample."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Look = Literal["empty", "boolean", "integer", "number", "text", "moment", "list", "vector", "other"]
SEPARATORS = ("|", ";", ",", " ")


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    look: Look
    """`integer`: also numbers without a fraction, as pandas writes integers with nulls; `list`: of ids; `vector`: lists
    of numbers, all of one length."""
    values: pa.Array
    """Of the sample, without nulls and NaN."""
    rows: int
    """Of the sample, with nulls."""
    of_floats: bool = False
    """An `integer` that is kept as floating point, or a `list` of numbers of changing length."""
    has_nan: bool = False

    @cached_property
    def distinct(self) -> int:
        """How many values it has."""
        return len(self.values.unique()) if self.look not in ("list", "vector", "other") else len(self.values)

    @property
    def nulls(self) -> int:
        """Rows without a value."""
        return self.rows - len(self.values)

    @property
    def constant(self) -> bool:
        """Whether no two rows differ."""
        return self.distinct <= 1 and self.nulls == 0 and self.look not in ("list", "vector", "other")

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.nulls == 0 and self.distinct == self.rows

    @cached_property
    def span(self) -> tuple[float, float]:
        """Least and greatest number."""
        found = pc.min_max(self.values).as_py()
        return float(found["min"]), float(found["max"])

    @cached_property
    def words(self) -> float:
        """Words of a text, on average."""
        return float(pc.mean(pc.count_substring_regex(self.values, r"\S+")).as_py() or 0.0)

    @cached_property
    def flat(self) -> pa.Array:
        """Values of all lists."""
        inner = self.values.flatten()
        return inner.drop_null() if not pa.types.is_null(inner.type) else inner

    @cached_property
    def length(self) -> int:
        """Values of the longest list."""
        return int(pc.max(pc.list_value_length(self.values)).as_py() or 0) if len(self.values) else 0

    @cached_property
    def separator(self) -> str | None:
        """What stands between the values of a text that lists several; None for another text."""
        if self.look != "text" or self.distinct < 3:
            return None
        for separator in SEPARATORS:
            having = pc.mean(pc.cast(pc.match_substring(self.values, separator), pa.float64())).as_py()
            if having < 0.2:
                continue
            parts = pc.list_flatten(pc.split_pattern(self.values, separator))
            parts = parts.filter(pc.not_equal(parts, ""))
            few = len(parts.unique()) <= max(8, 0.6 * self.distinct)
            clean = pc.mean(pc.utf8_length(parts)).as_py() if len(parts) else 0
            if few and 0 < clean <= 24 and (separator in "|;" or not re.search(r"[.!?]", _head(self.values))):
                return separator
        return None

    @property
    def skewed(self) -> bool:
        """Whether most numbers are small and a few are very large."""
        numbers = np.asarray(self.values.cast(pa.float64()))
        if not len(numbers) or numbers.min() < 0:
            return False
        return bool(np.quantile(numbers, 0.99) > 20 * max(float(np.median(numbers)), 1.0))


def _head(values: pa.Array) -> str:
    return " ".join(str(value) for value in values.slice(0, 50).to_pylist())


def columns_of(table: pa.Table) -> dict[str, Column]:
    """All columns of a sample, by name."""
    return {name: _column(name, table[name].combine_chunks(), table.num_rows) for name in table.column_names}


def _column(name: str, values: pa.Array, rows: int) -> Column:  # noqa: PLR0911 - one line for each type
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    values = values.drop_null()
    if len(values) == 0:
        return Column(name, "empty", values, rows)
    if pa.types.is_decimal(values.type) or pa.types.is_float16(values.type):
        values = values.cast(pa.float64())
    kind = values.type
    if pa.types.is_boolean(kind):
        return Column(name, "boolean", values, rows)
    if pa.types.is_integer(kind):
        return Column(name, "integer", values, rows)
    if pa.types.is_floating(kind):
        return _floats(name, values, rows)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return Column(name, "text", values.cast(pa.string()), rows)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Column(name, "moment", values, rows)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(name, values, rows)
    return Column(name, "other", values, rows)


def _floats(name: str, values: pa.Array, rows: int) -> Column:
    finite = values.filter(pc.invert(pc.is_nan(values)))
    has_nan = len(finite) < len(values)
    if len(finite) == 0:
        return Column(name, "empty", finite, rows)
    whole = pc.all(pc.and_(pc.equal(pc.floor(finite), finite), pc.less(pc.abs(finite), 2.0**53))).as_py()
    if whole:
        return Column(name, "integer", finite.cast(pa.int64()), rows, of_floats=True, has_nan=has_nan)
    return Column(name, "number", finite, rows, has_nan=has_nan)


def _lists(name: str, values: pa.Array, rows: int) -> Column:
    inner = values.type.value_type
    if pa.types.is_floating(inner):
        lengths = pc.unique(pc.list_value_length(values))
        if len(lengths) == 1 and lengths[0].as_py() and inner != pa.float16():
            return Column(name, "vector", values, rows)
        return Column(name, "list", values, rows, of_floats=True)
    if pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner):
        return Column(name, "list", values, rows)
    return Column(name, "other", values, rows)
