"""What columns of Parquet files hold, without the rows: for statistics of a part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from torchrec_xd.data.column_types import holds_strings, is_list
from torchrec_xd.data.files import FileStamp, ParquetFiles
from torchrec_xd.data.strings import user_numbers
from torchrec_xd.errors import UserError


class Contents:
    """Files of one domain and split.

    Args:
        locations: files, folders or globs.
        root: what a relative location starts from.

    Raises:
        UserError: a location holds nothing, or a file is no readable Parquet.
    """

    def __init__(self, locations: Sequence[str], root: str) -> None:
        self._files = ParquetFiles(locations, root, lambda file, columns: None)
        self.rows = sum(group.rows for group in self._files.row_groups)

    def stamps(self) -> tuple[FileStamp, ...]:
        """Every file as it was found."""
        return self._files.stamps()

    def values(self, column: str) -> NDArray[Any]:
        """The values of a column, lists flattened and nulls left out, [n]: numbers, and of strings the hashes.

        Of pairs (structs, maps) these are the first halves.

        Raises:
            UserError: there is no such column.
        """
        for schema, file in self._files.schemas.items():
            if column not in schema.names:
                raise UserError(f"{file}: no column '{column}'; there are: {', '.join(schema.names)}")
        read = self._files.reader([column])
        chunks = [chunk for group in self._files.row_groups for chunk in read(group)[column].chunks]
        return np.concatenate([_plain(chunk) for chunk in chunks] or [np.zeros(0, dtype=np.int64)])


def _plain(values: pa.Array) -> NDArray[Any]:
    if pa.types.is_map(values.type):
        values = values.keys
    elif is_list(values.type):
        values = pc.list_flatten(values)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, 0)
    values = values.drop_null()
    if holds_strings(values.type):
        return user_numbers(values)
    found: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found
