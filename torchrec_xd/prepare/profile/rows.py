"""The rows of a data set in DuckDB: all of them as a view, and a sample of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import duckdb
from pyarrow import fs

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.locations import find_files
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.prepare.tables import literal, quoted
from torchrec_xd.schema import Schema, Split

SPLITS: tuple[Split, ...] = get_args(Split)
TIME = "time"
BLOCK = 2048
"""Consecutive rows that are sampled together, as many as DuckDB decodes at once: it skips the others."""
_LARGEST = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": 1e20}
"""Seconds since 1970 stay below 1e11 until the year 5138, and so on."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FIRST = 1e8
"""Smaller numbers are no seconds since 1970 but, say, the number of a day."""


@dataclass(frozen=True)
class Part:
    """One domain and split.

    Args:
        connection: an Ibis backend of DuckDB.
        schema: of the data set.
        domain: name.
        split: name.
        number: distinguishes its tables from those of other parts.
        types: column to DuckDB type.
        rows: how many there are.
    """

    connection: Any
    schema: Schema
    domain: str
    split: Split
    number: int
    types: dict[str, str]
    rows: int

    @property
    def view(self) -> str:
        """Of all rows."""
        return f"profile_rows_{self.number}"

    @property
    def sample(self) -> str:
        """Of some rows: `_half` is 0 or 1; of a vector it has the Euclidean length."""
        return f"profile_sample_{self.number}"

    @property
    def features(self) -> tuple[Feature, ...]:
        """Of its rows."""
        return self.schema.features_of(self.domain)

    @property
    def labels(self) -> list[str]:
        """Of its rows."""
        return [task.label for task in self.schema.tasks if task.domain == self.domain]

    @property
    def key(self) -> str:
        """`domain/split`."""
        return f"{self.domain}/{self.split}"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a result, which is small."""
        return list(self.connection.raw_sql(sql).fetchall())

    def is_integer(self, feature: Feature) -> bool:
        """Whether ids are integers."""
        return "INT" in self.types[feature.column]

    def sampled(self) -> int:
        """Rows of the sample."""
        return int(self.query(f"SELECT count(*) FROM {self.sample}")[0][0])

    def day(self) -> str | None:
        """SQL for the day of a row in UTC; None where the files have no time, or a number that is none."""
        kind = self.types.get(TIME, "")
        if kind.startswith(("DATE", "TIMESTAMP")):
            return f"({TIME} AT TIME ZONE 'UTC')::DATE" if "TIME ZONE" in kind else f"{TIME}::DATE"
        if "INT" not in kind and kind not in ("FLOAT", "DOUBLE"):
            return None
        largest = self.query(f"SELECT max({TIME}) FROM {self.view}")[0][0] or 0
        unit = next((unit for unit, bound in _LARGEST.items() if _FIRST <= largest < bound), None)
        if unit is None:
            return None
        return f"DATE '1970-01-01' + CAST(floor({TIME} / {86_400 * _PER_SECOND[unit]}) AS INTEGER)"


def is_list(feature: Feature) -> bool:
    """Whether a row has a list of ids."""
    return feature.kind in ("bag", "sequence")


def open_parts(connection: Any, schema: Schema, sample_rows: int, *, check: bool) -> list[Part]:
    """Name the files of all domains and splits, and draw a sample from each.

    Args:
        connection: an Ibis backend of DuckDB.
        schema: of the data set.
        sample_rows: about so many rows of each; all where there are no more.
        check: whether columns are checked first, as training does.

    Raises:
        UserError: files or columns are missing, not as the schema says, or not on this machine.
    """
    parts: list[Part] = []
    for domain in schema.domains:
        for split in SPLITS:
            files = _files(schema, domain, split, check=check)
            if files:
                parts.append(_part(connection, schema, domain, split, len(parts), files))
                _draw(parts[-1], files, sample_rows)
    return parts


def _files(schema: Schema, domain: str, split: Split, *, check: bool) -> list[str]:
    paths = schema.domains[domain].paths(split)
    if not paths:
        return []
    system, files = find_files(paths, schema.root)
    if not isinstance(system, fs.LocalFileSystem):
        raise UserError(f"{paths[0]}: a profile reads local files; copy these to this machine, or mount them")
    if check:
        ParquetFiles(paths, schema.root, Decoder(schema, domain, labels=True, extra=()).check)
    return files


def _read(files: Sequence[str]) -> str:
    options = "union_by_name = true, hive_partitioning = false, filename = '_file', file_row_number = true"
    return f"read_parquet({literal(list(files))}, {options})"


def _part(connection: Any, schema: Schema, domain: str, split: Split, number: int, files: Sequence[str]) -> Part:
    part = Part(connection, schema, domain, split, number, {}, 0)
    try:
        connection.raw_sql(f"CREATE OR REPLACE TEMP VIEW {part.view} AS SELECT * FROM {_read(files)}")
        types = {name: kind for name, kind, *_ in part.query(f"DESCRIBE {part.view}")}
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"domain '{domain}', {split}: DuckDB cannot read its files together ({reason})") from None
    rows = part.query(f"SELECT count(*) FROM {part.view}")[0][0]
    return Part(connection, schema, domain, split, number, types, rows)


def _draw(part: Part, files: Sequence[str], sample_rows: int) -> None:
    one_in = -(-part.rows // sample_rows) if part.rows else 1
    columns = [quoted(name) for name in (part.schema.user, *part.labels)]
    columns += [_sampled(feature) for feature in part.features]
    # File names without folders: the same rows wherever the data set lies.
    half = "(hash(parse_filename(_file), file_row_number, 1) % 2)::TINYINT"
    selected = f"SELECT {half} AS _half, {', '.join(dict.fromkeys(columns))}"
    part.connection.raw_sql(f"CREATE OR REPLACE TEMP TABLE {part.sample} AS {selected} FROM {_read(files)} LIMIT 0")
    if one_in == 1:
        part.connection.raw_sql(f"INSERT INTO {part.sample} {selected} FROM {_read(files)}")
        return
    for file in files:  # one by one: DuckDB skips what it need not decode only if one column alone says so
        block = f"hash({literal(Path(file).name)}, file_row_number // {BLOCK})"
        part.connection.raw_sql(
            f"INSERT INTO {part.sample} {selected} FROM {_read([file])} WHERE {block} % {one_in} = 0"
        )


def _sampled(feature: Feature) -> str:
    name = quoted(feature.column)
    if feature.kind == "vector":
        return f"sqrt(list_sum(list_transform({name}::DOUBLE[], lambda x: x * x))) AS {name}"
    return f"{name}::DOUBLE AS {name}" if feature.kind == "dense" else name
