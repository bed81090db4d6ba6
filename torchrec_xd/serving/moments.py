"""When the rows of a request are: values of `time` to moments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from torchrec_xd.errors import UserError

TIME = "time"
"""Key of the moments that parts of the calendar are of."""
MOMENT = pa.timestamp("us", "UTC")
_SHOWN = 60


def read_moments(values: Sequence[Any]) -> pa.Array:
    """One of type `MOMENT` for each value.

    Args:
        values: ISO 8601 with a zone, or seconds since 1970; None is now.

    Raises:
        UserError: one is neither; names its row.
    """
    now = datetime.now(timezone.utc)
    return pa.array([now if value is None else _moment(value, row) for row, value in enumerate(values)], MOMENT)


def _moment(value: Any, row: int) -> datetime:
    text = repr(value)
    place = f"request: row {row}, column '{TIME}': {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'}"
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if not isinstance(value, str):
            return datetime.fromtimestamp(float(value), timezone.utc)
        found = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if found.tzinfo is not None:
            return found.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"{place} is no moment; write ISO 8601 with a zone, as 2026-11-26T12:00:00Z, or seconds since 1970"
        ) from None
    raise UserError(f"{place} names no zone; write …Z or …+01:00")
