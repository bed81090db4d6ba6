"""Schema files: read, and what they take from other files resolved."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from torchrec_xd.data.locations import find_files
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema
from torchrec_xd.settings import load_yaml, validate

_VOCABULARY = ("value", "row")
"""Columns that a vocabulary has, and others."""


def load_schema(path: str | Path) -> Schema:
    """Read a schema file.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    return validate(Schema, with_rows(load_yaml(Path(path)), str(path)), str(path))


def with_rows(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The content of a schema, with a number in place of every path under `rows`: 1 + the rows of that vocabulary.

    What is no path is left for the schema to judge.

    Args:
        content: of a schema file.
        origin: its name, for messages.

    Raises:
        UserError: there is no such file, or it is no vocabulary.
    """
    features, root = content.get("features"), content.get("root", ".")
    if not isinstance(features, list) or not isinstance(root, str):
        return content
    return {**content, "features": [_resolved(feature, root, origin) for feature in features]}


def _resolved(feature: Any, root: str, origin: str) -> Any:
    rows = feature.get("rows") if isinstance(feature, dict) else None
    if not isinstance(rows, str) or not ("/" in rows or rows.endswith(".parquet")):
        return feature
    try:
        return {**feature, "rows": 1 + _vocabulary_rows(rows, root)}
    except UserError as error:
        raise UserError(f"{origin}: feature '{feature.get('column')}': rows: {error}") from None


def _footer(filesystem: fs.FileSystem, file: str) -> tuple[list[str], int]:
    """Columns and number of rows."""
    with filesystem.open_input_file(file) as stream, pq.ParquetFile(stream) as parquet:
        return parquet.schema_arrow.names, parquet.metadata.num_rows


def _vocabulary_rows(location: str, root: str) -> int:
    """Rows of a vocabulary, by its footer; row 0 of the table, for values that it lacks, is none of them."""
    filesystem, files = find_files([location], root)
    count = 0
    for file in files:
        try:
            names, rows = Patience()(functools.partial(_footer, filesystem, file), f"{filesystem.type_name}://{file}")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as Parquet ({error}); write it again, or give the number") from None
        if missing := [column for column in _VOCABULARY if column not in names]:
            raise UserError(
                f"{file} is no vocabulary: it has no column '{missing[0]}', only {', '.join(names)}; name a file from "
                "encoders/, or give the number of rows"
            )
        count += rows
    return count
