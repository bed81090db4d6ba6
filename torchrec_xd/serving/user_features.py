"""Features of users that a server keeps, so that a request may name the user alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.data.key_rows import Hashes, KeyRows, hashes_of
from torchrec_xd.errors import UserError
from torchrec_xd.serving.column_values import arrow_values

_CHECKED = 1000
"""Values of a column that are looked at when a file is opened."""


class UserFeatures(Protocol):
    """Where features of users come from."""

    def lookup(self, users: Sequence[Any]) -> pa.RecordBatch:
        """A row for each user, in their order; nulls for one who is not known.

        Args:
            users: integers or texts; 7 and "7" are one user.
        """
        ...


class ParquetUserFeatures:
    """Features of users from a file, found by the users' hashes of 64 bits.

    Args:
        path: of a Parquet file with a row for each user.
        user: name of its column of users.
        wanted: columns that a request may have -> the types of their values. Others are not read.

    Raises:
        UserError: the file cannot be read, has no users, none of these columns, other types of values, or a user twice.
    """

    def __init__(self, path: Path, user: str, wanted: Mapping[str, pa.DataType]) -> None:
        try:
            there = pq.read_schema(path).names
            names = [name for name in wanted if name in there and name != user]
            if user not in there:
                raise UserError(f"{path}: no column '{user}', which names the user; columns are: {', '.join(there)}")
            if not names:
                raise UserError(f"{path}: none of the columns that a request has: {', '.join(wanted)}")
            table = pq.read_table(path, columns=[user, *names])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
        table = table.filter(table[user].is_valid())
        if not table.num_rows:
            raise UserError(f"{path}: no row names a user")
        for name in names:
            first = table[name].drop_null().slice(0, _CHECKED).to_pylist()
            arrow_values(first, wanted[name], f"{path}, rows with a value", name)
        keys = _user_keys(table[user].combine_chunks())
        order = np.argsort(keys, kind="stable")
        if len(twice := np.flatnonzero(keys[order][1:] == keys[order][:-1])):
            raise UserError(f"{path}: user {table[user][order[twice[0]]].as_py()!r} is there twice; keep one row")
        self._row_of = KeyRows.ascending(keys[order], order + 1)  # row 0 is for all others
        (self._rows,) = table.select(names).combine_chunks().to_batches()

    def lookup(self, users: Sequence[Any]) -> pa.RecordBatch:
        """A row for each user, in their order; nulls for one who is not known."""
        try:
            given = pa.array(users)
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
            given = pa.nulls(len(users))  # no users: whoever reads the request says so
        known = pa.types.is_integer(given.type) or pa.types.is_string(given.type)
        row = np.zeros(len(users), dtype=np.int64)
        if known:
            row = self._row_of.rows(_user_keys(given.fill_null("" if pa.types.is_string(given.type) else 0)))
            row[given.is_null().to_numpy(zero_copy_only=False)] = 0
        return self._rows.take(pa.array(row - 1, mask=row == 0))


def _user_keys(users: pa.Array) -> Hashes:
    return hashes_of(users.cast(pa.string()))
