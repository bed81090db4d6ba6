"""What statistics of many files say: the same as of one after the other, in few queries."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_xd.data import statistics
from torchrec_xd.data.limits import Limits, Range
from torchrec_xd.data.statistics import Found, Statistics

LIMITS = [Limits("x", 0, 9), Limits("y", nulls=False)]
SCHEMA = pa.schema([("x", pa.int64()), ("y", pa.float32())])


def write(path: Path, x: list[int | None], y: list[float | None], statistics: bool = True) -> str:
    table = pa.table({"x": x, "y": y}, SCHEMA)
    pq.write_table(table, path, row_group_size=2, write_statistics=statistics)
    return str(path)


def looked(files: list[str]) -> Found:
    return Statistics(LIMITS).look({SCHEMA: files})[SCHEMA]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        write(tmp_path / "a.parquet", [1, 2, 3, 10], [0.5, 1.5, None, 2.5]),
        write(tmp_path / "b.parquet", [None, None], [4, 4]),
        write(tmp_path / "c[ab].parquet", [-1, 5, 6], [0.25, 0.5, 0.5]),
        write(tmp_path / "?.parquet", [7, 8, 70], [-8, -8, -8]),
    ]


def test_limits_and_ranges_by_hand(files: list[str]) -> None:
    whole = looked([files[0], files[1], files[3]])
    assert whole.doubtful == {(files[0], 1), (files[3], 1)}  # values above 9, and a null where none may be
    assert whole.ranges == {"x": Range(1, 70, 9, 2), "y": Range(-8, 4, 9, 1)}
    named_like_a_glob = looked([files[2]])
    assert named_like_a_glob.doubtful == {(files[2], 0)}
    assert named_like_a_glob.ranges["x"] == Range(-1, 6, 3, 0)


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_batches_of_any_size_find_the_same(files: list[str], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [looked([file]) for file in files]
    expected = single[0] | single[1] | single[2] | single[3]
    monkeypatch.setattr(statistics, "_BATCH", batch)
    assert looked(files) == expected
    assert (files[0], 1) in expected.doubtful


def test_a_file_without_statistics_leaves_no_range_and_hides_no_doubt(files: list[str], tmp_path: Path) -> None:
    bare = write(tmp_path / "e.parquet", [1], [1], statistics=False)
    found = looked([*files[:2], bare])
    assert found == Found(frozenset({(files[0], 1)}))


@pytest.mark.parametrize("content", [None, b"PAR1 no footer at all PAR1"])
def test_a_file_that_cannot_be_looked_at_hides_no_doubt(
    files: list[str], tmp_path: Path, content: bytes | None
) -> None:
    bad = tmp_path / "0.parquet"
    if content is not None:
        bad.write_bytes(content)
    found = looked([files[1], str(bad), files[0]])
    assert found == Found(frozenset({(files[0], 1)}))


def test_hundreds_of_files_are_few_queries(tmp_path: Path) -> None:
    many = [write(tmp_path / f"{i:03}.parquet", [i % 10], [i]) for i in range(300)]
    many.append(write(tmp_path / "last.parquet", [77], [0]))
    statistics_of = Statistics(LIMITS)
    queries = []
    look = statistics_of._look
    statistics_of._look = lambda limits, files: queries.append(len(files)) or look(limits, files)  # type: ignore[method-assign,func-returns-value]
    found = statistics_of.look({SCHEMA: many})[SCHEMA]
    assert sorted(queries) == [45, 256]
    assert found.doubtful == {(many[-1], 0)}
    assert found.ranges == {"x": Range(0, 77, 301, 0), "y": Range(0, 299, 301, 0)}


@pytest.mark.parametrize("name", ["data[v2]", "data?", "data"])
def test_doubt_is_not_lost_where_a_path_goes_up(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "jobs").mkdir()
    write(tmp_path / name / "a.parquet", [77], [1])
    write(tmp_path / name / "b.parquet", [7], [1])
    files = [str(tmp_path / "jobs" / ".." / name / file) for file in ("a.parquet", "b.parquet")]
    assert looked(files).doubtful == {(files[0], 0)}


def test_two_names_of_a_file_are_both_doubtful(tmp_path: Path) -> None:
    file = write(tmp_path / "a[1].parquet", [77], [1])
    other = str(tmp_path / "." / ".." / tmp_path.name / "a[1].parquet")
    assert looked([file, other]).doubtful == {(file, 0), (other, 0)}


def test_every_schema_is_looked_at_by_its_own_leaves(tmp_path: Path) -> None:
    other = pa.schema([("y", pa.float32()), ("x", pa.int64())])
    pq.write_table(pa.table({"y": [1.5], "x": [12]}, other), tmp_path / "other.parquet")
    file, swapped = write(tmp_path / "a.parquet", [7], [99]), str(tmp_path / "other.parquet")
    known = Statistics(LIMITS).look({SCHEMA: [file], other: [swapped]})
    assert known[SCHEMA] == Found(ranges={"x": Range(7, 7, 1, 0), "y": Range(99, 99, 1, 0)})
    assert known[other].doubtful == {(swapped, 0)}
    assert Statistics([Limits("z")]).look({SCHEMA: [file]}) == {SCHEMA: Found()}
