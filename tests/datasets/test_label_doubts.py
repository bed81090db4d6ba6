"""`torchrec-xd label`: warnings on the screen."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.label_logs import change, run, small_logs, write


@pytest.fixture
def logs(tmp_path):
    """A folder and the config of the small logs in it."""
    return small_logs(tmp_path)


def many(logs, seconds, window):
    """1,000 exposures, one a day from 2026 on, each wanted in search three days later; times in seconds or days."""
    folder, content = logs
    count, unit = 1000, 86400 if seconds else 1
    times = [20_454 * unit + day * unit for day in range(count)]
    rows = [("ada", place, "k" if place % 2 else "l", time, "oslo") for place, time in enumerate(times)]
    later = [(*row[:3], row[3] + 3 * unit, row[4]) for row in rows]
    write(folder / "shown.parquet", rows, clicked=[place % 2 for place in range(count)], page=[1] * count)
    write(folder / "clicks.parquet", rows[::2])
    write(folder / "search.parquet", later)
    labels = {"window": window, "support": 0, "smoothing": 0, "consistency": "individual"}
    return run((folder, content), sources={"search": content["sources"]["search"]}, labels=labels)


def test_a_window_in_another_unit(logs):
    assert (
        "warning: wanted in 'search': 0.0 % of rows, and 100.0 % with a window without end; labels.window is 28 in the "
        "unit of column 'day', whose values range from 1767225600 to 1853539200 in exposures and from 1767484800 to "
        "1853798400 in sources.search: if these are seconds, 28 days are 2419200"
    ) in many(logs, seconds=True, window=28)


def test_a_window_in_the_right_unit(logs):
    output = many(logs, seconds=True, window=28 * 86400)
    assert "with a window without end" not in output
    assert "warning: wanted in 'search' is 1 in all 1,000 rows: nothing can be learnt from one class" in output


def test_no_warning_without_a_doubt(logs):
    folder, _content = logs
    many(logs, seconds=False, window=3)
    table = pq.read_table(folder / "search.parquet")
    pq.write_table(table.slice(0, 500), folder / "search.parquet")
    output = run(logs, out="again", sources={"search": logs[1]["sources"]["search"]}, labels={"window": 3})
    assert "warning" not in output
    assert "| all rows | 1,000 |" in output


def test_short_windows_are_doubted_where_far_more_is_wanted_without(logs):
    """One row in a hundred is wanted at once; all would be with any window."""
    folder, content = logs
    rows = [("ada", place, "k", place * 100_000, "oslo") for place in range(100)]
    write(folder / "shown.parquet", rows, clicked=[1, *[0] * 99], page=[1] * 100)
    write(folder / "search.parquet", [rows[0], *[(*row[:3], row[3] + 5000, row[4]) for row in rows[1:]]])
    sources = {"search": content["sources"]["search"]}
    assert "warning: wanted in 'search': 1.0 % of rows, and 100.0 % with" in run(logs, sources=sources)
    write(folder / "search.parquet", [*rows[:10], *[(*row[:3], row[3] + 5000, row[4]) for row in rows[10:]]])
    assert "with a window without end" not in run(logs, out="again", sources=sources)


def test_ids_that_never_meet(logs):
    change(logs[1]["sources"]["map"], "person", pa.array(["ADA"]))
    message = (
        "warning: wanted in 'map': 0.0 % of rows; 0 of 4 rows have their user and item in an action of sources.map"
    )
    assert message in run(logs)


def test_sources_without_rows(logs):
    path = logs[1]["sources"]["map"]
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "warning: sources.map holds no rows: nothing is wanted in 'map'" in run(logs)


@pytest.mark.parametrize("value", [0, 1])
def test_labels_of_one_class(logs, value):
    change(logs[1]["exposures"], "clicked", pa.array([value] * 4))
    output = run(logs)
    assert f"warning: the label is {value} in all 4 rows: nothing can be learnt from one class" in output
    assert "warning: of the 1 rows wanted in 'map' all fit: nothing can be learnt from one class" in output
