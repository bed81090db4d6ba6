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


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        write(tmp_path / "a.parquet", [1, 2, 3, 10], [0.5, 1.5, None, 2.5]),
        write(tmp_path / "b.parquet", [None, None], [4, 4]),
        write(tmp_path / "c[ab].parquet", [-1, 5, 6], [0.25, 0.5, 0.5]),
        write(tmp_path / "?.parquet", [7, 8, 70], [-8, -8, -8]),
    ]


def test_limits_and_ranges_by_hand(files: list[str]) -> None:
    whole = Statistics(LIMITS).look([files[0], files[1], files[3]], SCHEMA)
    assert whole.doubtful == {(files[0], 1), (files[3], 1)}  # values above 9, and a null where none may be
    assert whole.ranges == {"x": Range(1, 70, 9, 2), "y": Range(-8, 4, 9, 1)}
    named_like_a_glob = Statistics(LIMITS).look([files[2]], SCHEMA)
    assert named_like_a_glob.doubtful == {(files[2], 0)}
    assert named_like_a_glob.ranges["x"] == Range(-1, 6, 3, 0)


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_batches_of_any_size_find_the_same(files: list[str], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [Statistics(LIMITS).look([file], SCHEMA) for file in files]
    expected = single[0] | single[1] | single[2] | single[3]
    monkeypatch.setattr(statistics, "_BATCH", batch)
    assert Statistics(LIMITS).look(files, SCHEMA) == expected
    assert (files[0], 1) in expected.doubtful


def test_a_file_without_statistics_leaves_no_range_and_hides_no_doubt(files: list[str], tmp_path: Path) -> None:
    bare = write(tmp_path / "e.parquet", [1], [1], statistics=False)
    found = Statistics(LIMITS).look([*files[:2], bare], SCHEMA)
    assert found == Found(frozenset({(files[0], 1)}))


@pytest.mark.parametrize("content", [None, b"PAR1 no footer at all PAR1"])
def test_a_file_that_cannot_be_looked_at_hides_no_doubt(
    files: list[str], tmp_path: Path, content: bytes | None
) -> None:
    bad = tmp_path / "0.parquet"
    if content is not None:
        bad.write_bytes(content)
    found = Statistics(LIMITS).look([files[1], str(bad), files[0]], SCHEMA)
    assert found == Found(frozenset({(files[0], 1)}))


def test_hundreds_of_files_are_few_queries(tmp_path: Path) -> None:
    many = [write(tmp_path / f"{i:03}.parquet", [i % 10], [i]) for i in range(300)]
    many.append(write(tmp_path / "last.parquet", [77], [0]))
    looked = Statistics(LIMITS)
    queries = []
    look = looked._look
    looked._look = lambda limits, files: queries.append(len(files)) or look(limits, files)  # type: ignore[method-assign,func-returns-value]
    found = looked.look(many, SCHEMA)
    assert sorted(queries) == [45, 256]
    assert found.doubtful == {(many[-1], 0)}
    assert found.ranges == {"x": Range(0, 77, 301, 0), "y": Range(0, 299, 301, 0)}
