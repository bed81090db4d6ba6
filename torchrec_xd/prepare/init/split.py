"""Where the time of the rows is cut into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec_xd.prepare.init.roles import Time
from torchrec_xd.prepare.init.sample import Sample
from torchrec_xd.prepare.init.sql import computed, moment, sql_name
from torchrec_xd.prepare.init.tables import DomainRows

SHARES = (0.8, 0.9)
FEWEST_SHARE = 0.005
"""Of a domain's rows that every split has to have."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROS = {"s": 1e6, "ms": 1e3, "us": 1.0}
_DAY = 86_400_000_000


@dataclass(frozen=True)
class Cuts:
    """First moments of validation and test, ISO 8601, and what they go by."""

    valid: str
    test: str
    source: str


def cuts(target: DomainRows, domains: list[DomainRows]) -> Cuts | None:
    """Where 80 % and 90 % of the target's rows have passed.

    Footers of Parquet files count all rows; of other files the sample is all there is to go by. None where the times do
    not tell rows apart, or would leave a domain without rows, or a label without positives, in some split.
    """
    moments, weights, source = _moments(target)
    if not len(moments):
        return None
    order = np.argsort(moments, kind="stable")
    passed = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(passed, np.array(SHARES) + 1e-9, side="right")
    low, high = float(moments.min()), float(moments.max())
    exact = [float(moment) for moment in moments[order][np.minimum(places, len(order) - 1)]]
    days = [float(round(moment / _DAY) * _DAY) for moment in exact]
    for ends in ([days] if high - low >= 10 * _DAY else []) + [exact]:
        if low < ends[0] < ends[1] <= high and all(_fits(rows, ends) for rows in domains):
            return Cuts(_text(ends[0]), _text(ends[1]), source)
    return None


def _fits(rows: DomainRows, ends: list[float]) -> bool:
    """Whether every split has rows; and if all rows were seen, positives and negatives of every label."""
    moments, weights, _ = _moments(rows)
    split = np.searchsorted(np.array(ends), moments, side="right")
    shares = np.bincount(split, weights, minlength=3)
    if (shares < FEWEST_SHARE * weights.sum()).any():
        return False
    if not rows.looked.sample.whole:
        return True
    labels = _label_values(rows)
    split = np.searchsorted(np.array(ends), labels.pop("_when"), side="right")
    return all({0.0, 1.0} <= set(values[split == part]) for values in labels.values() for part in range(3))


def _label_values(rows: DomainRows) -> dict[str, np.ndarray[Any, Any]]:
    """Label to 0, 1 or NaN, and `_when` to microseconds, of all rows of the sample that have a time."""
    assert rows.looked.roles.time is not None
    column = sql_name(rows.looked.roles.time.column)
    labels = rows.labels()
    values = [f"CAST({label.sql} AS DOUBLE) AS l{i}" for i, label in enumerate(labels.values())]
    found = computed(rows.looked.sample.table, f"{column} AS t", *values)
    found = found.filter(found["t"].is_valid())
    made = {name: np.asarray(found[f"l{i}"].to_numpy()) for i, name in enumerate(labels)}
    return {**made, "_when": _micros(found["t"], rows.looked.roles.time)}


def _moments(rows: DomainRows) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]:
    """Moments, the rows that each stands for, and where they were read."""
    time, sample = rows.looked.roles.time, rows.looked.sample
    if time is None:
        return np.array([]), np.array([]), ""
    moments, weights = _from_footers(sample, time)
    if len(moments) and not sample.whole:
        return moments, weights, "its footers"
    moments = _micros(sample.table[time.column], time)
    return moments, np.ones(len(moments)), "all rows" if sample.whole else "the sample"


def _from_footers(sample: Sample, time: Time) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Moments spread over the range of every row group, with the rows that each stands for."""
    if time.format is not None:
        return np.array([]), np.array([])
    points, weights = [], []
    for low, high, rows in sample.ranges(time.column):
        ends = [_number(end, time) for end in (low, high)]
        points.append(np.linspace(ends[0], ends[1], 21))
        weights.append(np.full(21, rows / 21))
    return (np.concatenate(points), np.concatenate(weights)) if points else (np.array([]), np.array([]))


def _number(value: Any, time: Time) -> float:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return (aware - _EPOCH) / timedelta(microseconds=1)
    if isinstance(value, date):
        return float((value - _EPOCH.date()).days * _DAY)
    return float(value) * _MICROS[time.unit or "us"]


def _micros(values: pa.ChunkedArray, time: Time) -> np.ndarray[Any, Any]:
    values = values.drop_null()
    if time.format is not None:
        texts = pa.table({"t": values.cast(pa.string())})
        values = computed(texts, f"{moment('t', time.format)} AS t")["t"]
    if time.unit is not None:
        return np.asarray(values.cast(pa.float64())) * _MICROS[time.unit]
    return np.asarray(values.cast(pa.timestamp("us")).cast(pa.int64())).astype(float)


def _text(micros: float) -> str:
    moment = (_EPOCH + timedelta(microseconds=int(micros))).replace(tzinfo=None).isoformat()
    return moment.removesuffix("T00:00:00")
