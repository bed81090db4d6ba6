"""Learn from training rows: vocabularies by frequency, edges of buckets, means and deviations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import ibis
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.prepare.encoders import NumberEncoder, VocabularyFile, sha256
from torchrec_xd.prepare.features import features_of, table_of, way_of
from torchrec_xd.prepare.recipe import RecipeFeature, Vocabulary
from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.tables import Tables

DAY = 86_400_000_000
DIGITS = 6
"""Of means and deviations: sums of floats differ from engine to engine behind these."""


def values_of(tables: Tables, rows: Table, feature: RecipeFeature) -> Value:
    """The values of a feature in the rows of a domain: a list for bags and sequences."""
    value = rows[f"v_{feature.column}"]
    if feature.separator is not None:
        value = tables.split(value, feature.separator)
    return value


def vocabulary_tables(recipe_features: tuple[RecipeFeature, ...]) -> dict[str, list[RecipeFeature]]:
    """Table to the features of it, for tables with a vocabulary."""
    found: dict[str, list[RecipeFeature]] = {}
    for feature in recipe_features:
        if feature.kind in ("id", "bag", "sequence") and way_of(feature) == "vocabulary":
            found.setdefault(table_of(feature), []).append(feature)
    return found


def learn_vocabulary(
    tables: Tables, file: RecipeFile, table: str, rows: Mapping[str, Table], events: Mapping[str, Table], path: Path
) -> VocabularyFile:
    """Count a table's values in training rows, and write those that get a row.

    A table that only histories read learns from events before validation begins.

    Raises:
        UserError: no value is frequent enough, or values are integers here and texts there.
    """
    features = vocabulary_tables(file.recipe.features)[table]
    seen: list[Table] = []
    for feature in features:
        for domain, own in rows.items():
            if feature.history is None and feature in features_of(file.recipe, domain):
                train = own.filter(own._split == 0)
                seen.append(_values(train, values_of(tables, train, feature)))
    for feature in features if not seen else ():
        assert feature.history is not None
        past = events[feature.history.events]
        last = reduce(ibis.greatest, (own.filter(own._split == 0)._time.max().as_scalar() for own in rows.values()))
        past = past.filter(past._time <= last)
        seen.append(_values(past, past[f"h_{feature.column}"]))
    kinds = {each.value.type().is_string() for each in seen}
    if len(kinds) > 1:
        columns = ", ".join(feature.column for feature in features)
        raise file.feature_fault(features[0].column, f"its table holds texts and integers ({columns}); cast one kind")
    strings = kinds == {True}
    values = ibis.union(*(each.mutate(value=each.value.cast("string" if strings else "int64")) for each in seen))
    settings = next((feature.vocabulary for feature in features if feature.vocabulary), Vocabulary())
    counts = (
        values.filter(_.value.notnull())
        .group_by("value")
        .agg(
            count=_.count(),
            first_day=(_._time.min() // DAY).cast("int32"),
            last_day=(_._time.max() // DAY).cast("int32"),
        )
    )
    counts = counts.filter(counts["count"] >= settings.min_count)
    place = ibis.row_number().over(order_by=[counts["count"].desc(), counts.value]) + 1
    words = counts.mutate(row=place.cast("int32"))
    if settings.max_rows is not None:
        words = words.filter(words.row < settings.max_rows)
    written = tables.arrow(words.select("value", "row", "count", "first_day", "last_day").order_by("row"))
    if not written.num_rows:
        fault = file.feature_fault(
            features[0].column,
            f"no value occurs in {settings.min_count} training rows, so that all would be row 0; lower 'min_count', or "
            "leave the feature out",
            "vocabulary",
        )
        file.raise_for_all_rows(fault)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(written, path, compression="zstd")
    return VocabularyFile(
        file=path.name, sha256=sha256(path), values="string" if strings else "integer", rows=written.num_rows + 1
    )


def _values(rows: Table, value: Value) -> Table:
    if value.type().is_array():
        return rows.select("_time", value=value.unnest())
    return rows.select("_time", value=value)


def learn_number(train: Table, feature: RecipeFeature) -> NumberEncoder:
    """Edges of quantiles, or missing value, mean and deviation.

    Args:
        train: training rows with a column `value`.
        feature: with `quantiles`, `missing` or `standard`.
    """
    if feature.quantiles is not None:
        return NumberEncoder(edges=_quantiles(train, feature.quantiles))
    value = train.value.cast("float64")
    value = value.isnan().ifelse(ibis.null("float64"), value)
    if feature.clip is not None:
        value = value.clip(*feature.clip)
    if feature.missing == "mean":
        missing = _scalar(train.select(value=value).value.mean())
    else:
        missing = 0.0 if feature.missing == "zero" else feature.missing
    encoder = NumberEncoder(missing=missing)
    if not feature.standard:
        return encoder
    changed = train.select(value=bounded(train.value, feature, encoder)).value
    deviation = _scalar(changed.std(how="pop"))
    return encoder.model_copy(update={"mean": _scalar(changed.mean()), "std": deviation or 1.0})


def _scalar(value: Value) -> float:
    found = value.to_pyarrow().as_py()
    return float(f"{found or 0.0:.{DIGITS}g}")


def _quantiles(train: Table, buckets: int) -> tuple[float, ...]:
    """The least values that have k/n of the training rows below them; counted, so that all engines find the same."""
    number = train.value.cast("float64")
    counts = train.filter(number.notnull(), ~number.isnan()).group_by(value=number).agg(count=_.count())
    below = counts.mutate(below=counts["count"].sum().over(ibis.cumulative_window(order_by="value")) - counts["count"])
    total = counts["count"].sum().to_pyarrow().as_py() or 0
    place = (below.below * buckets / max(total, 1)).floor()
    edges = below.mutate(place=place).group_by("place").agg(edge=_.value.min()).edge.to_pyarrow().to_pylist()
    return tuple(sorted(edges)[1:])


def bounded(value: Value, feature: RecipeFeature, encoder: NumberEncoder) -> Value:
    """A number with null replaced, bounded, and its logarithm where the feature wants one."""
    number = value.cast("float64")
    number = number.isnan().ifelse(ibis.null("float64"), number).fill_null(encoder.missing)
    if feature.clip is not None:
        number = number.clip(*feature.clip)
    return number.sign() * (number.abs() + 1.0).ln() if feature.log1p else number


def standardised(value: Value, feature: RecipeFeature, encoder: NumberEncoder) -> Value:
    """A dense feature as it is written, float32."""
    number = bounded(value, feature, encoder)
    return ((number - encoder.mean) / encoder.std).cast("float32")
