"""Where the time of the rows is cut into training, validation and test."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from torchrec_xd.prepare.init.roles import Time
from torchrec_xd.prepare.init.sample import Sample

SHARES = (0.8, 0.9)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROS = {"s": 1e6, "ms": 1e3, "us": 1.0}
_DAY = 86_400_000_000


def cuts(sample: Sample, time: Time) -> tuple[str, str, str] | None:
    """First moments of validation and test, and what they go by: where 80 % and 90 % of the rows have passed.

    Footers of Parquet files count all rows; of other files the sample is all there is to go by. None where the times do
    not tell rows apart.
    """
    moments, weights = _from_footers(sample, time)
    source = "its footers"
    if not len(moments):
        source = "the sample"
        moments = _micros(sample.table[time.column], time)
        weights = np.ones(len(moments))
    if not len(moments):
        return None
    order = np.argsort(moments, kind="stable")
    passed = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(passed, np.array(SHARES) + 1e-9, side="right")
    valid, test = (int(moment) for moment in moments[order][np.minimum(places, len(order) - 1)])
    low, high = int(moments.min()), int(moments.max())
    if high - low >= 10 * _DAY:
        days = [round(moment / _DAY) * _DAY for moment in (valid, test)]
        if low < days[0] < days[1] <= high:
            return str(_moment(days[0]).date()), str(_moment(days[1]).date()), source
    if not low < valid < test <= high:
        return None
    return _text(valid), _text(test), source


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
        with duckdb.connect() as read:
            texts = read.from_arrow(pa.table({"t": values.cast(pa.string())}))
            values = texts.project(f"strptime(t, '{time.format}') AS t").to_arrow_table()["t"]
    if time.unit is not None:
        return np.asarray(values.cast(pa.float64())) * _MICROS[time.unit]
    return np.asarray(values.cast(pa.timestamp("us")).cast(pa.int64())).astype(float)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _text(micros: int) -> str:
    return _moment(micros).replace(tzinfo=None).isoformat()
