"""`torchrec-xd label`: types and values of the columns."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.label_logs import CONFIG, LABELS, change, labels, run, small_logs
from torchrec_xd.errors import UserError


@pytest.fixture
def logs(tmp_path):
    """A folder and the config of the small logs in it."""
    return small_logs(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.date32(), pa.string(), pa.float64(), pa.duration("s"), pa.bool_(), pa.list_(pa.int64())],
)
@pytest.mark.parametrize("table", ["exposures", "target", "sources.search"])
def test_times_are_whole_numbers(logs, kind, table):
    path = logs[1]["sources"]["search"] if "." in table else logs[1][table]
    change(path, "day", pa.nulls(len(pq.read_table(path)), kind))
    with pytest.raises(UserError, match=rf"{table}: .*: column 'day' \(columns\.time\) has type .*whole numbers.*1970"):
        run(logs)
    assert not (logs[0] / "out").exists()


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int32()])
def test_unsigned_times_below_the_window(logs, kind):
    folder, content = logs
    for path in (content["exposures"], content["target"], *content["sources"].values()):
        days = pq.read_table(path)["day"].to_pylist()
        change(path, "day", pa.array([day - 10 for day in days], kind))
    run(logs, labels={**CONFIG["labels"], "window": 5})
    assert labels(folder / "out" / "labelled" / "shown.parquet") == LABELS


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("day", pa.array([10, None, 10, 20]), r"row 1, column 'day': None is no time \(columns\.time\)"),
        ("day", pa.array([10, 10, 2**61, 20]), "row 2, column 'day': 2305843009213693952 is no time"),
        ("day", pa.array([10, 2**64 - 1, 9, 20], pa.uint64()), "row 1, column 'day': 18446744073709551615 is no time"),
        ("clicked", pa.array([0, 1, 3, 0]), r"row 2, column 'clicked': 3 is no label \(acted\); labels are 0 or 1"),
        ("clicked", pa.array([0, -1, 1, 0]), "row 1, column 'clicked': -1 is no label"),
        ("clicked", pa.array([0.7, 0, 1, 0]), "row 0, column 'clicked': 0.7 is no label"),
        ("clicked", pa.array([0, 1, 1, None]), "row 3, column 'clicked': None is no label"),
        ("clicked", pa.array([0, 1, float("nan"), 0]), "row 2, column 'clicked': nan is no label"),
        ("clicked", pa.nulls(4), "row 0, column 'clicked': None is no label"),
        (
            "clicked",
            pa.array(["0", "1", "1", "0"]),
            r"'clicked' \(acted\) has type string; it is a boolean or a number",
        ),
        (
            "person",
            pa.array([1.0, 2, 3, 4]),
            "column 'person' .* has type double; it holds whole numbers, strings or bool",
        ),
        ("town", pa.array([[1], [2], [], None]), r"column 'town' \(columns\.groups\) has type list"),
        ("page", pa.array([[1], [2], [], None]), r"column 'page' \(report_by\) has type list.*cannot be counted by it"),
    ],
)
def test_values_are_checked(logs, column, values, message):
    change(logs[1]["exposures"], column, values)
    with pytest.raises(UserError, match=rf"shown\.parquet: .*{message}"):
        run(logs)
    assert sorted(path.name for path in logs[0].iterdir()) == sorted(
        ["labels.yaml", "shown.parquet", "clicks.parquet", "search.parquet", "map.parquet"]
    )


@pytest.mark.parametrize("kind", [pa.bool_(), pa.float32(), pa.uint64(), pa.decimal128(4, 1)])
def test_acted_is_any_kind_of_number(logs, kind):
    change(logs[1]["exposures"], "clicked", pa.array([1, 0, 0, 0], pa.int8()).cast(kind))
    assert "| all rows | 4 | 75.0 % | 0.0 % | 0.0 % | 25.0 %" in run(logs)


@pytest.mark.parametrize("column", ["person", "kind", "town", "thing"])
@pytest.mark.parametrize("table", ["target", "map"])
def test_a_column_is_of_one_kind_in_all_tables(logs, column, table):
    path = logs[1]["sources"]["map"] if table == "map" else logs[1]["target"]
    change(path, column, pa.array(["1"]) if column == "thing" else pa.array([1]))
    kinds = (
        r"string in .* \(.*{0}\), and int64 in .*" if column == "thing" else r"int64 in .* \(.*{0}\), and string in .*"
    )
    message = rf"column '{column}' .* has type {kinds.format(table)}shown\.parquet \(exposures\); it has one kind"
    with pytest.raises(UserError, match=message):
        run(logs)


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_strings_are_equal_in_all_their_types(logs, kind):
    folder, content = logs
    for column in ("person", "kind", "town"):
        values = pq.read_table(content["sources"]["search"])[column]
        dictionary = pa.types.is_dictionary(kind)
        change(content["sources"]["search"], column, values.dictionary_encode() if dictionary else values.cast(kind))
    run(logs)
    assert labels(folder / "out" / "labelled" / "shown.parquet") == LABELS


def test_whole_numbers_are_equal_in_all_their_types(logs):
    """An unsigned 64-bit id is not the negative number of the same bits."""
    folder, content = logs
    huge = 2**64 - 1
    change(content["exposures"], "thing", pa.array([huge, huge, 2, huge], pa.uint64()))
    change(content["sources"]["search"], "thing", pa.array([huge, 9], pa.uint64()))
    change(content["sources"]["map"], "thing", pa.array([-1], pa.int8()))
    run(logs)
    assert [row[::2] for row in labels(folder / "out" / "labelled" / "shown.parquet")] == [
        (1, 0),
        (0, 0),
        (0, 0),
        (0, 0),
    ]


def test_columns_of_nulls_only_are_of_any_kind(logs):
    folder, content = logs
    change(content["exposures"], "town", pa.nulls(4))
    change(content["target"], "kind", pa.nulls(1))
    run(logs)
    assert [row[::2] for row in labels(folder / "out" / "labelled" / "shown.parquet")] == [row[::2] for row in LABELS]
