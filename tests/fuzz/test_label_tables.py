"""`label` on mutated tables and settings: only a UserError may leave it; what it accepts has the labels of loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.naive_labels import Event, naive_parts
from torchrec_xd.datasets import LabelStepSettings, label
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate

Logs = dict[str, list[pa.Table]]
"""Table to the rows of its files."""
Rng = np.random.Generator

ROLES = ("user", "item", "category", "time", "group")
TABLES = ("shown", "clicks", "search", "map")
NAMES = (
    *("individual", "group_0", "wanted_search", "Fit_map", "_until", "_found", "_n", "value", "rows", "all", "a.b"),
    *("", "é"),
)
TYPES = (
    *(pa.int8(), pa.uint8(), pa.uint16(), pa.int32(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.null()),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.timestamp("us"), pa.timestamp("ns", "UTC")),
    *(pa.date32(), pa.time64("us"), pa.duration("s"), pa.decimal128(20, 3), pa.list_(pa.int64())),
    *(pa.struct([("x", pa.int64())]), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64())),
)
NAN, HIGH = float("nan"), 2**63
VALUES = (0, 1, -1, 3, 0.7, 2**31, 2**61, HIGH - 1, -HIGH, 2 * HIGH - 1, True, None, "x", "1", b"\xff", NAN, [1])
EXPOSURES = ("shown/*.parquet", "shown/**/*.parquet", "shown/0.parquet", "nowhere", "", ".", "file://", "\0", "~", "*")
SOURCES: tuple[Any, ...] = (
    *({"search": "search", "map": "map"}, {"search": "clicks"}, {"a b": "map"}, {"/": "map"}),
    *({"": "map"}, {"a.b": "map"}, {"M": "map", "m": "map"}, {}, ["map"], None),
)
INFINITE = float("inf")
SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("labels.window", (0, 1, 7, 10**18, HIGH, -1, 0.5, "2", None, True)),
    ("labels.consistency", ("individual", "group", "any", "all", "none", 1)),
    ("labels.ratio", (1e-300, 0.7, 1.5, 1e300, INFINITE, NAN, -1, "x")),
    ("labels.smoothing", (0, 0.5, 1e300, INFINITE, NAN, -1)),
    ("labels.support", (0, 2, 10**18, 2**70, -1)),
    ("columns.until", ("ends", "group", "time", "nowhere", "", 1)),
    ("columns.user", ("user", "item", "nowhere", "", None, 3)),
    ("columns.groups", ([], ["group"], ["group", "page"], ["item"], ["group", "group"], "group", [1])),
    ("acted", ("acted", "user", "nowhere", "", 7)),
    ("report_by", ([], ["page"], ["item", "time"], ["group"], ["nowhere"], ["acted"], "page")),
    ("exposures", EXPOSURES),
    ("sources", SOURCES),
    ("engine", ("duckdb", "spark", "polars")),
    ("memory_limit_gb", (0.001, 1e-9, 1e300, INFINITE, 0, "1GB")),
    ("threads", (1, 2, 0, 10**9, "x")),
)


def small_logs(rng: Rng) -> Logs:
    """Four tables that are valid, of one or two files each."""
    logs = {}
    strings = rng.random() < 0.5
    for table in TABLES:
        count = int(rng.integers(1, 30))
        columns = {name: rng.integers(0, high, count) for name, high in zip(ROLES, (4, 5, 3, 12, 3), strict=True)}
        arrays = {name: pa.array(values, mask=rng.random(count) < 0.1) for name, values in columns.items()}
        arrays["time"] = pa.array(columns["time"])
        if strings:
            arrays |= {name: arrays[name].cast(pa.string()) for name in ("user", "group")}
        arrays["page"] = pa.array(rng.integers(0, 3, count))
        if table == "shown":
            arrays |= {"acted": pa.array(rng.integers(0, 2, count)), "ends": pa.array(rng.integers(4, 16, count))}
        rows = pa.table(arrays)
        cut = int(rng.integers(0, count + 1))
        logs[table] = [rows.slice(0, cut), rows.slice(cut)] if rng.random() < 0.5 else [rows]
    return logs


def settings_of(rng: Rng) -> dict[str, Any]:
    columns: dict[str, Any] = {name: name for name in ROLES[:4]} | {"groups": ["group"]}
    if rng.random() < 0.5:
        columns["until"] = "ends"
    return {
        **{"exposures": "shown", "acted": "acted", "target": "clicks", "sources": {"search": "search"}},
        **{"columns": columns, "labels": {"window": 2, "support": 2, "smoothing": 1.5}, "threads": 1},
    }


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutate(rng: Rng, logs: Logs, settings: dict[str, Any]) -> None:
    """Change one thing in some tables or in the settings."""
    if rng.random() < 0.3:
        key, values = SETTINGS[rng.integers(len(SETTINGS))]
        *above, last = key.split(".")
        place = settings[above[0]] if above else settings
        place[last] = values[rng.integers(len(values))]
        return
    change = TABLE_CHANGES[rng.integers(len(TABLE_CHANGES))]
    everywhere = rng.random() < 0.4
    chosen = TABLES if everywhere else (TABLES[rng.integers(len(TABLES))],)
    files = [(table, place) for table in chosen for place in range(len(logs[table]))]
    if not everywhere and rng.random() < 0.3:
        files = files[:1]
    names = logs[files[0][0]][files[0][1]].column_names
    column = names[rng.integers(len(names))] if names else ""
    seed = int(rng.integers(2**31))
    for table, place in files:
        if logs[table][place].column_names.count(column) == 1:
            logs[table][place] = change(np.random.default_rng(seed), logs[table][place], column)


def retype(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    """The same values in another type; where there is no way, nulls."""
    kind = TYPES[rng.integers(len(TYPES))]
    place = rows.column_names.index(column)
    try:
        values = rows.column(place).cast(kind)
    except (pa.ArrowException, NotImplementedError):
        values = pa.nulls(len(rows), kind)
    return rows.set_column(place, column, values)


def revalue(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    """One value, or all, replaced by a strange one."""
    value = VALUES[rng.integers(len(VALUES))]
    place = rows.column_names.index(column)
    values = rows.column(place).to_pylist()
    chosen = range(len(values)) if rng.random() < 0.3 else rng.integers(0, len(values), 1) if values else ()
    for row in chosen:
        values[row] = value
    try:
        return rows.set_column(place, column, pa.array(values))
    except (pa.ArrowException, OverflowError):
        kind = pa.uint64() if isinstance(value, int) and value >= HIGH else None
        return rows.set_column(place, column, pa.array([value] * len(rows), kind))


def rename(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    new = (NAMES + ROLES)[rng.integers(len(NAMES + ROLES))]
    return rows.rename_columns([new if name == column else name for name in rows.column_names])


def add(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    return rows.append_column((NAMES + ROLES)[rng.integers(len(NAMES + ROLES))], rows.column(column))


def drop(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    return rows.drop_columns([column])


def empty(rng: Rng, rows: pa.Table, column: str) -> pa.Table:
    return rows.slice(0, 0)


TABLE_CHANGES: tuple[Callable[[Rng, pa.Table, str], pa.Table], ...] = (
    *(retype,) * 4,
    *(revalue,) * 4,
    *(rename, add, drop, empty),
)


def damage(rng: Rng, path: Path) -> None:
    """Some bytes of a file changed, cut off or put in."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    way = rng.integers(4)
    if way == 0:
        del content[place:]
    elif way == 1:
        content[place:place] = rng.bytes(int(rng.integers(1, 9)))
    else:
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
    path.write_bytes(content)


# ---- the reference ---------------------------------------------------------------------------------------------------


def check(settings: LabelStepSettings, out: Path) -> None:
    """What was written is what loops make of the files that were read, in their order."""
    names = settings.columns
    keys = [names.user, names.item, names.category, names.time, *names.groups]
    shown, old = read(settings.exposures), {}
    for path in files(settings.exposures):
        old[path.name] = pq.ParquetFile(path).read()
    new = {path.name: pq.ParquetFile(path).read() for path in (out / "labelled").rglob("*.parquet")}
    added = [f"{part}_{source}" for source in settings.sources for part in ("wanted", "fit")]
    for name, rows in old.items():
        kept = new[name].drop_columns(added)
        assert kept.schema == rows.schema
        assert repr(kept.to_pydict()) == repr(rows.to_pydict())  # NaN is no NaN's equal
    found = [tuple(row[name] for name in added) for name in sorted(new) for row in new[name].to_pylist()]
    target = [event(row, keys) for row in read(settings.target)]
    sources = [[event(row, keys) for row in read(location)] for location in settings.sources.values()]
    wanted = []
    for row in shown:
        until = float("inf") if names.until is None else row[names.until]
        parts = [naive_parts(event(row, keys), until, target, source, settings.labels) for source in sources]
        wanted.append(tuple(value for part in parts for value in (part.wanted, part.fit(settings.labels))))
        assert row[settings.acted] in (0, 1)
    assert found == wanted


def files(location: str) -> list[Path]:
    if Path(location).is_dir():
        location = f"{location}/**/*.parquet"
    return sorted(path for path in Path().glob(location) if path.is_file())


def read(location: str) -> list[dict[str, Any]]:
    return [row for path in files(location) for row in pq.ParquetFile(path).read().to_pylist()]


def event(row: dict[str, Any], keys: list[str]) -> Event:
    user, item, category, time, *groups = (row[key].encode() if isinstance(row[key], str) else row[key] for key in keys)
    assert isinstance(time, int)
    return Event(user, item, category, time, tuple(groups))


# ---- the tests -------------------------------------------------------------------------------------------------------


def write(logs: Logs, rng: Rng) -> None:
    for table, parts in logs.items():
        Path(table).mkdir()
        for place, rows in enumerate(parts):
            pq.write_table(rows, f"{table}/{place}.parquet", row_group_size=int(rng.integers(1, 20)))


def outcome(content: dict[str, Any], out: Path) -> LabelStepSettings | None:
    """The settings of labels that were made, None where they were refused."""
    try:
        settings = validate(LabelStepSettings, copy.deepcopy(content), "labels.yaml")
        label(settings, out, lambda line: None)
    except UserError:
        assert not out.exists()
        return None
    return settings


def test_mutated_tables_and_settings(tmp_path, monkeypatch, fuzz_seeds):
    accepted = 0
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        rng = np.random.default_rng(seed)
        logs, settings = small_logs(rng), settings_of(rng)
        for _ in range(int(rng.integers(1, 5))):
            mutate(rng, logs, settings)
        write(logs, rng)
        made = outcome(settings, folder / "out")
        if made is not None:
            check(made, folder / "out")
            accepted += 1
    print(f"{accepted} of {len(fuzz_seeds)} accepted")
    assert 0.1 < accepted / len(fuzz_seeds) < 0.9


def test_damaged_files(tmp_path, monkeypatch, fuzz_seeds):
    """What PyArrow refuses to read is refused."""
    for seed in fuzz_seeds:
        print(f"seed {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        rng = np.random.default_rng(seed)
        logs, settings = small_logs(rng), settings_of(rng)
        write(logs, rng)
        path = Path(("shown", "clicks", "search")[rng.integers(3)], "0.parquet")
        damage(rng, path)
        readable = True
        try:
            pq.ParquetFile(path).read(columns=list(ROLES))
        except (OSError, ValueError, LookupError, pa.ArrowException):
            readable = False
        made = outcome(settings, folder / "out")
        assert readable or made is None
