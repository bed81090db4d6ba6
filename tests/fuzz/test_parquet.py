"""Parquet files whose bytes or whose structure are damaged: told, or read as PyArrow reads them."""
# ruff: noqa: PERF203, PT017 - seeds and counts are printed; what a refusal says is checked case by case

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_xd.batch import Batch
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

ROWS = 40
Random = np.random.Generator
FEATURES: list[dict[str, Any]] = [
    {"column": "item", "kind": "id", "group": "shared", "rows": 50},
    {"column": "word", "kind": "id", "group": "shared", "rows": 97, "hash": "xxhash"},
    {"column": "tags", "kind": "bag", "group": "shared", "rows": 9},
    {"column": "hist", "kind": "sequence", "group": "sequence", "rows": 9, "length": 3},
    {"column": "price", "kind": "dense", "group": "shared"},
]


def table_of(random: Random) -> pa.Table:
    lists = [[int(i) for i in random.integers(9, size=n)] for n in random.integers(5, size=2 * ROWS)]
    return pa.table(
        {
            "user": random.integers(10, size=ROWS),
            "item": pa.array(random.integers(50, size=ROWS), pa.int32()),
            "word": [f"w{i}" for i in random.integers(30, size=ROWS)],
            "tags": lists[:ROWS],
            "hist": pa.array(lists[ROWS:], pa.large_list(pa.int16())),
            "price": random.random(ROWS),
            "click": pa.array(random.integers(2, size=ROWS), pa.int8()),
            "recent": random.integers(60, size=ROWS),
        }
    )


def schema_at(root: Path) -> Schema:
    domain = {"role": "target", "train": "train", "test": "test.parquet"}
    tasks = [{"label": "click", "domain": "d"}]
    content = {"name": "fuzz", "user": "user", "root": str(root), "domains": {"d": domain}, "tasks": tasks}
    return Schema.model_validate({**content, "features": FEATURES})


def batches(root: Path) -> list[Batch]:
    settings = LoaderSettings(batch_size=16, prefetch=2)
    loader = Loader(schema_at(root), settings, "test", ShardSpec(shuffle=False), extra=("recent",))
    return list(loader.batches())


def named(path: Path, error: UserError) -> bool:
    """Whether an error names the file, or the one column that not every file needs."""
    return str(path) in str(error) or "no file of the test split has the column 'recent'" in str(error)


def write(path: Path, table: pa.Table, random: Random) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=int(random.integers(5, 50)),
        compression=str(random.choice(["none", "snappy", "zstd"])),
        use_dictionary=bool(random.integers(2)),
        data_page_version=str(random.choice(["1.0", "2.0"])),
        write_page_checksum=bool(random.integers(2)),
        write_statistics=bool(random.integers(2)),
    )


# ---- bytes -----------------------------------------------------------------------------------------------------------


def flip(data: bytearray, random: Random) -> None:
    for at in random.integers(len(data), size=random.integers(1, 4)):
        data[at] ^= 1 << int(random.integers(8))


def flip_in_the_footer(data: bytearray, random: Random) -> None:
    length = int.from_bytes(data[-8:-4], "little") + 8
    data[-1 - int(random.integers(length))] ^= 1 << int(random.integers(8))


def truncate(data: bytearray, random: Random) -> None:
    del data[int(random.integers(len(data))) :]


def cut_out(data: bytearray, random: Random) -> None:
    first = int(random.integers(len(data)))
    del data[first : first + int(random.integers(1, 200))]


def blank(data: bytearray, random: Random) -> None:
    first = int(random.integers(len(data)))
    last = min(first + int(random.integers(1, 200)), len(data))
    data[first:last] = bytes(last - first)


def extend(data: bytearray, random: Random) -> None:
    data += random.bytes(int(random.integers(1, 50)))


BYTES: list[Callable[[bytearray, Random], None]] = [flip, flip_in_the_footer, truncate, cut_out, blank, extend]


def test_damaged_bytes(tmp_path: Path, fuzz_seeds: range) -> None:
    path, refused = tmp_path / "test.parquet", 0
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        write(path, table_of(random), random)
        data = bytearray(path.read_bytes())
        BYTES[seed % len(BYTES)](data, random)
        path.write_bytes(bytes(data))
        try:
            read = batches(tmp_path)
        except UserError as error:
            refused += 1
            assert named(path, error)
            continue
        # accepted: PyArrow reads and verifies the whole file too, and finds the same rows
        whole = pq.ParquetFile(path, page_checksum_verification=True).read()
        assert [user for batch in read for user in batch.user_B.tolist()] == whole["user"].to_pylist()
        prices = [price for batch in read for price in batch.dense_BN[:, 0].tolist()]
        assert prices == whole["price"].fill_null(0).cast(pa.float32(), safe=False).to_pylist()
    print(f"{refused} of {len(fuzz_seeds)} refused")
    assert refused > len(fuzz_seeds) // 2


# ---- structure -------------------------------------------------------------------------------------------------------

TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(9, 2), pa.string(),
    pa.large_string(), pa.string_view(), pa.binary(), pa.binary(4), pa.date32(), pa.timestamp("us"), pa.duration("s"),
    pa.time64("us"), pa.list_(pa.int64()), pa.list_(pa.string()), pa.list_(pa.null()), pa.list_(pa.list_(pa.int8())),
    pa.large_list(pa.float32()), pa.list_(pa.int32(), 2), pa.struct([("a", pa.int64())]), pa.map_(pa.int8(), pa.int8()),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()),
    pa.list_(pa.dictionary(pa.int8(), pa.string())), pa.struct([("a", pa.list_(pa.int8())), ("b", pa.string())]),
]  # fmt: skip


def values_of(kind: pa.DataType, random: Random) -> pa.Array:
    """Some nulls, and small values where the type has them."""
    numbers = [None if random.random() < 0.1 else int(i) for i in random.integers(3, size=ROWS)]
    makers: list[Callable[[int], Any]] = [
        int,
        str,
        lambda i: [i, i],
        lambda i: b"abcd",
        lambda i: [(1, i)],
        lambda i: {},
    ]
    for make in makers:
        try:
            return pa.array([None if i is None else make(i) for i in numbers], kind)
        except (pa.ArrowException, TypeError, ValueError):
            continue
    return pa.nulls(ROWS, kind)


def other_type(table: pa.Table, random: Random) -> pa.Table:
    column = int(random.integers(table.num_columns))
    kind = TYPES[int(random.integers(len(TYPES)))]
    return table.set_column(column, table.column_names[column], values_of(kind, random))


def other_value(table: pa.Table, random: Random) -> pa.Table:
    column = int(random.integers(table.num_columns))
    field = table.schema.field(column)
    lists = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    texts = pa.types.is_string(field.type)
    choices = [None, "", "ü" * 99] if texts else [None, -1, 99, 2**31, -(2**63), 2**63 - 1]
    if pa.types.is_floating(field.type):
        choices = [None, float("nan"), float("inf"), -0.0, 1e308, 5e-324]
    values = table.column(column).to_pylist()
    value = choices[int(random.integers(len(choices)))]
    values[int(random.integers(ROWS))] = [value] if lists else value
    kind = pa.list_(pa.int64()) if lists else pa.int64() if pa.types.is_integer(field.type) else field.type
    return table.set_column(column, field.name, pa.array(values, kind))


def drop(table: pa.Table, random: Random) -> pa.Table:
    return table.remove_column(int(random.integers(table.num_columns)))


def rename(table: pa.Table, random: Random) -> pa.Table:
    names = list(table.column_names)
    column = int(random.integers(len(names)))
    names[column] = str(random.choice(["", "item", "a.b", "item.x", "ITEM", "ü", "list.element"]))
    return table.rename_columns(names)


def shuffle(table: pa.Table, random: Random) -> pa.Table:
    return table.select([int(i) for i in random.permutation(table.num_columns)])


def empty(table: pa.Table, random: Random) -> pa.Table:
    return table.slice(0, 0)


STRUCTURES: list[Callable[[pa.Table, Random], pa.Table]] = [
    other_type,
    other_value,
    other_type,
    other_value,
    drop,
    rename,
]
STRUCTURES += [shuffle, empty]


def test_other_structure(tmp_path: Path, fuzz_seeds: range) -> None:
    path, refused = tmp_path / "test.parquet", 0
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        random = np.random.default_rng(seed)
        table = STRUCTURES[seed % len(STRUCTURES)](table_of(random), random)
        try:
            write(path, table, random)
        except pa.ArrowException:
            continue  # Parquet has no such type
        try:
            read = batches(tmp_path)
        except UserError as error:
            refused += 1
            assert named(path, error)
            continue
        assert sum(len(batch) for batch in read) == table.num_rows
        assert [user for batch in read for user in batch.user_B.tolist()] == table["user"].to_pylist()
        for name, bound, ids in (("item", 50, 0), ("tags", 9, 2)):
            key = read[0].bags.keys().index(name) if read else ids
            for batch in read:
                values = batch.bags[batch.bags.keys()[key]].values()
                assert not len(values) or 0 <= int(values.min()) <= int(values.max()) < bound
    print(f"{refused} of {len(fuzz_seeds)} refused")
    assert refused > len(fuzz_seeds) // 4
