"""What a slice of rows makes of a vocabulary: which keys get a row, which lose theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_xd.data.arrow import Decoder
from torchrec_xd.data.column_types import holds_strings, is_list, is_string
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.outages import Patience
from torchrec_xd.data.rows import Integers
from torchrec_xd.data.weights import as_lists
from torchrec_xd.errors import UserError
from torchrec_xd.feature import VocabularySettings
from torchrec_xd.schema import Schema

PARTS = 1 << 22
"""Counts of row groups that are held before they are added up."""
STATE = ("row", "count", "first_seen", "last_seen")


def empty(keys: pa.DataType) -> pa.Table:
    """A vocabulary without keys."""
    types = [keys, *(pa.int64() for _ in STATE)]
    return pa.table([pa.array([], kind) for kind in types], names=["key", *STATE])


def updated(
    before: pa.Table, seen: pa.Table, rows: int, now: int, settings: VocabularySettings, table: str
) -> tuple[pa.Table, int]:
    """The vocabulary after a slice, by key, and the rows of its table.

    First, keys that were not seen for `expire` days or slices are forgotten, and their rows are free. Then keys that
    were seen `admit` times in all get the lowest free rows, the most frequent first, equal ones by key. The table grows
    by whole blocks, the last one up to `capacity`.

    Args:
        before: of the run that this one goes on from; `empty` where there is none.
        seen: `key` and `count` of the slice, a key once.
        rows: that the table has.
        now: the day or slice.
        settings: of the vocabulary.
        table: its name, for messages.

    Raises:
        UserError: there are integers on one side and texts on the other, or more rows are needed than `capacity`.
    """
    if len(before) and len(seen) and holds_strings(before["key"].type) != holds_strings(seen["key"].type):
        kinds = ["strings" if holds_strings(each["key"].type) else "integers" for each in (before, seen)]
        raise UserError(
            f"table '{table}': keys were {kinds[0]} so far and are {kinds[1]} now: write them with one type"
        )
    size = len(seen)
    clock = pa.array(np.full(size, now), pa.int64())
    new = pa.table([seen["key"], pa.nulls(size, pa.int64()), seen["count"], clock, clock], names=["key", *STATE])
    both = pa.concat_tables([each for each in (before, new) if len(each)] or [new])
    merged = both.group_by("key").aggregate(
        [("row", "max"), ("count", "sum"), ("first_seen", "min"), ("last_seen", "max")]
    )
    merged = merged.select(["key", "row_max", "count_sum", "first_seen_min", "last_seen_max"])
    merged = merged.rename_columns(["key", *STATE])
    if settings.expire is not None:
        merged = merged.filter(pc.greater(merged["last_seen"], now - settings.expire))
    merged = merged.take(pc.sort_indices(merged, [("count", "descending"), ("key", "ascending")]))
    row_V = merged["row"].fill_null(0).to_numpy().copy()
    wanting = np.flatnonzero((row_V == 0) & (merged["count"].to_numpy() >= settings.admit))
    held = row_V[row_V > 0]
    needed = 1 + len(held) + len(wanting)
    if settings.capacity is not None and needed > settings.capacity:
        raise UserError(
            f"table '{table}': {needed - 1:,} keys and row 0 need {needed:,} rows, and vocabulary.capacity is "
            f"{settings.capacity:,}: raise it, or raise admit ({settings.admit}), or "
            f"{'set' if settings.expire is None else 'lower'} expire, so that fewer keys have a row"
        )
    grown = -(-needed // settings.block) * settings.block
    rows = max(rows, grown if settings.capacity is None else min(grown, settings.capacity))
    free = np.ones(rows, dtype=np.bool_)
    free[0], free[held] = False, False
    row_V[wanting] = np.flatnonzero(free)[: len(wanting)]
    found = merged.set_column(1, "row", pa.array(row_V, mask=row_V == 0))
    return found.sort_by("key").combine_chunks(), rows


def new_rows(before: pa.Table | None, after: pa.Table) -> tuple[Integers, pa.Array]:
    """Rows whose key is another one than before, ascending, and their keys."""
    admitted = after.filter(after["row"].is_valid()).sort_by("row")
    rows, keys = admitted["row"].to_numpy(), admitted["key"].combine_chunks()
    if before is None or not len(before):
        return rows, keys
    held = before.filter(before["row"].is_valid())
    place_of_row = np.full(int(max(rows.max(initial=0), held["row"].to_numpy().max(initial=0))) + 1, -1)
    place_of_row[held["row"].to_numpy()] = np.arange(len(held))
    place = place_of_row[rows]
    there = held["key"].combine_chunks().take(pa.array(place, mask=place < 0))
    changed = pc.fill_null(pc.not_equal(keys, there), True).to_numpy(zero_copy_only=False)
    return rows[changed], keys.filter(pa.array(changed))


# ---- what rows hold --------------------------------------------------------------------------------------------------


def seen_keys(
    schema: Schema,
    tables: Sequence[str],
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> dict[str, pa.Table]:
    """Every key of some tables in the training rows, with how often the columns hold it.

    Row groups are read one after the other; memory is bounded by the distinct keys.

    Raises:
        UserError: files are missing or damaged, columns are of a wrong type, or a table's keys are integers here and
            texts there.
        OutageError: the store does not answer.
    """
    parts: Mapping[str, list[pa.Table]] = defaultdict(list)
    for name in schema.domains:
        columns = [(f.table_name, f.column) for f in schema.features_of(name) if f.has_table and f.table_name in tables]
        if not columns:
            continue
        decoder = Decoder(schema, name, labels=True, extra=(), mapped=False)
        files = ParquetFiles(schema.domains[name].paths("train"), schema.root, decoder.check, patience=patience)
        read = files.reader([column for _, column in columns])
        for group in files.row_groups:
            content = read(group)
            for table, column in columns:
                parts[table] += _counted(content[column], column, group.file)
                if sum(map(len, parts[table])) > PARTS + 2 * len(parts[table][0]):
                    parts[table][:] = [_added(table, parts[table])]
    return {table: _added(table, parts[table]) if parts[table] else _nothing() for table in tables}


def _counted(column: pa.ChunkedArray, name: str, file: str) -> Iterator[pa.Table]:
    """The distinct keys of a column of one row group, and their counts."""
    for chunk in as_lists(column).chunks:
        keys = chunk
        if pa.types.is_null(keys.type):
            continue
        if is_list(keys.type):
            keys = keys.flatten()
        if pa.types.is_struct(keys.type):  # pairs of id and weight
            keys = keys.flatten()[0]
        if pa.types.is_null(keys.type):
            continue
        counted = pc.value_counts(keys.drop_null())
        keys, counts = counted.flatten()
        if pa.types.is_dictionary(keys.type):
            keys = keys.dictionary_decode()
        try:
            keys = keys.cast(pa.large_string() if is_string(keys.type) else pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{file}, column '{name}': keys of a vocabulary are texts, or signed 64-bit integers ({error})"
            ) from None
        yield pa.table({"key": keys, "count": counts})


def _added(table: str, parts: Sequence[pa.Table]) -> pa.Table:
    kinds = {holds_strings(part["key"].type) for part in parts}
    if len(kinds) > 1:
        raise UserError(
            f"table '{table.removeprefix('t_')}': keys are integers in some files and strings in others: write them "
            "with one type"
        )
    added = pa.concat_tables(parts).group_by("key").aggregate([("count", "sum")])
    return added.select(["key", "count_sum"]).rename_columns(["key", "count"])


def _nothing() -> pa.Table:
    return pa.table({"key": pa.array([], pa.int64()), "count": pa.array([], pa.int64())})
