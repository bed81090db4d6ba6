"""Totals and histories strictly before a row, against their definitions written as Python loops."""

import math
import time
from random import Random

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchrec_xd.prepare.as_of import DAY, PastTotal, history_as_of, totals_as_of
from torchrec_xd.prepare.engine import connect
from torchrec_xd.prepare.engine_settings import DuckDBSettings, EngineSettings

TOTALS = {
    "seen": PastTotal("count"),
    "user": PastTotal("count", where="bought"),  # the name of a key
    "week": PastTotal("count", days=1.5),
    "spent": PastTotal("sum", "price", where="bought"),
    "lately": PastTotal("sum", "price", days=1),
    "pieces": PastTotal("sum", "number", days=1),
    "mean": PastTotal("share", "price"),
    "rate": PastTotal("share", "bought", days=0.5),
    "per_piece": PastTotal("share", "price", per="number", where="bought"),
    "pieces_per_price": PastTotal("share", "number", per="price", days=1),
    "since": PastTotal("days_since"),
    "since_bought": PastTotal("days_since", where="bought", days=1),
}
ROWS = pa.schema({"_row": "int64", "_time": "int64", "user": "int32", "city": "string"})
EVENTS = pa.schema(
    {
        "_time": "int64",
        "user": "int64",
        "city": "string",
        "number": "int64",
        "price": "float64",
        "bought": "bool",
        "item": "string",
    }
)

moments = st.none() | st.integers(-3, 5).map(lambda half_days: half_days * DAY // 2)
users = st.none() | st.integers(1, 3)
CITIES = [None, "Köln", "Bonn"]
PRICES = [None, math.nan, 0.1, 0.2, -7.25, 1e9]
cities = st.sampled_from(CITIES)
rows = st.lists(st.tuples(moments, users, cities), max_size=12)
events = st.lists(
    st.tuples(
        moments,
        users,
        cities,
        st.none() | st.integers(-5, 5),
        st.sampled_from(PRICES),
        st.none() | st.booleans(),
        st.sampled_from([None, "", "a", "b"]),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def duckdb(tmp_path_factory):
    return connect(EngineSettings(duckdb=DuckDBSettings(threads=2)), tmp_path_factory.mktemp("spill"))


def table_of(connection, name, schema, columns):
    content = pa.table(columns, schema=schema)
    if connection.name == "pyspark":
        connection._session.createDataFrame(content).createOrReplaceTempView(name)
        return connection.table(name)
    return connection.create_table(name, content, overwrite=True)


def row_table(connection, found):
    columns = [list(range(len(found))), *([row[place] for row in found] for place in range(3))]
    return table_of(connection, "the_rows", ROWS, columns)


def event_table(connection, found):
    return table_of(connection, "the_events", EVENTS, [[event[place] for event in found] for place in range(7)])


def answers(result):
    """Row number to the other columns."""
    rows = sorted(result.to_pyarrow().to_pylist(), key=lambda row: row["_row"])
    found = {row.pop("_row"): row for row in rows}
    assert len(found) == len(rows)
    return found


def before(row, found, by):
    """Events strictly before a row, as mappings."""
    row = dict(zip(["_time", "user", "city"], row, strict=True))
    named = [dict(zip(EVENTS.names, event, strict=True)) for event in found]
    return row["_time"], [
        event
        for event in named
        if all(event[key] is not None and event[key] == row[key] for key in by)
        and None not in (event["_time"], row["_time"])
        and event["_time"] < row["_time"]
    ]


def expected_total(total, moment, past):
    if total.days is not None:
        past = [event for event in past if event["_time"] >= moment - total.days * DAY]
    if total.where is not None:
        past = [event for event in past if event[total.where]]
    if total.what == "count":
        return len(past)
    if total.what == "days_since":
        return (moment - max(event["_time"] for event in past)) / DAY if past else None
    pairs = [(event[total.value], event[total.per] if total.per else 1) for event in past]
    pairs = [pair for pair in pairs if not any(value is None or math.isnan(value) for value in pair)]
    amount, count = (round(sum(values), 6) for values in zip(*pairs, strict=True)) if pairs else (0, 0)
    if total.what == "sum":
        return amount
    return pytest.approx(amount / count) if count else None


def same_instant(place):
    """An event at the moment of the row, one a microsecond before, and one just within a window of a day."""
    return (place * DAY, 1, "Bonn"), [(place * DAY - ago, 1, "Bonn", 2, 0.5, True, "a") for ago in (0, 1, DAY, DAY + 1)]


@settings(max_examples=25)
@given(rows, events, st.sampled_from([("user",), ("city",), ("user", "city")]))
@example([same_instant(3)[0]], same_instant(3)[1], ("user",))
@example([(0, 1, "Bonn")], [], ("user", "city"))
def test_totals(duckdb, rows, events, by):
    found = answers(totals_as_of(row_table(duckdb, rows), event_table(duckdb, events), by, TOTALS))
    assert found == {
        number: {name: expected_total(total, *before(row, events, by)) for name, total in TOTALS.items()}
        for number, row in enumerate(rows)
    }


def order_of(event):
    """By time, then by the columns of the history; null comes last."""
    return (
        event["_time"],
        *((event[name] is None, event[name] or 0) for name in ("number",)),
        event["item"] is None,
        (event["item"] or ""),
    )


@settings(max_examples=25)
@given(rows, events, st.sampled_from([("user",), ("city", "user")]), st.integers(1, 4))
@example([same_instant(3)[0]], same_instant(3)[1], ("user",), 2)
@example([(9 * DAY, 1, "Bonn")], same_instant(3)[1], ("user",), 4)
def test_histories(duckdb, rows, events, by, length):
    history = history_as_of(
        row_table(duckdb, rows), event_table(duckdb, events), by, length, ["item", "number"], ["number"]
    )
    found = answers(history)
    for number, row in enumerate(rows):
        last = sorted(before(row, events, by)[1], key=order_of)[-length:]
        assert found.pop(number) == {name: [event[name] for event in last] for name in ("item", "number")}
    assert not found


def test_spark_computes_the_same(duckdb, local_spark, tmp_path):
    random = Random(3)
    rows = [
        (random.choice([None, *range(0, 9 * DAY, DAY // 2)]), random.choice([None, 1, 2, 3]), random.choice(CITIES))
        for _ in range(300)
    ]
    events = [
        (
            *(random.choice([None, *range(0, 9 * DAY, DAY // 2)]), random.choice([None, 1, 2]), random.choice(CITIES)),
            *(random.choice([None, random.randrange(-9, 9)]), random.choice([*PRICES, random.uniform(-1e3, 1e3)])),
            *(random.choice([None, True, False]), random.choice([None, "", "a", "ä", "B"])),
        )
        for _ in range(400)
    ]
    found = {}
    for name, connection in (("duckdb", duckdb), ("spark", connect(local_spark, tmp_path))):
        tables = row_table(connection, rows), event_table(connection, events)
        found[name] = [
            answers(totals_as_of(*tables, ["user", "city"], TOTALS)),
            answers(history_as_of(*tables, ["user"], 7, ["item", "number"], ["price"])),
        ]
    assert found["spark"] == found["duckdb"]
    assert len(found["spark"][0]) == 300
    assert len({row["spent"] for row in found["spark"][0].values()}) > 20
    assert {0, 7} < {len(row["item"]) for row in found["spark"][1].values()}


def test_the_future_changes_nothing(duckdb):
    """Events of the row's own instant and later are replaced, taken away and added to."""
    past = [(place * DAY // 2, 1, "Bonn", place, 0.5, place % 2 == 0, "a") for place in range(6)]
    rows = [(3 * DAY, 1, "Bonn"), (3 * DAY, 2, "Bonn")]
    seen = []
    for future in ([], [(3 * DAY, 1, "Bonn", 9, 9.5, True, "x")], [(4 * DAY, 1, "Bonn", 9, 9.5, True, "y")] * 9):
        tables = row_table(duckdb, rows), event_table(duckdb, past + future)
        seen.append(
            (answers(totals_as_of(*tables, ["user"], TOTALS)), answers(history_as_of(*tables, ["user"], 3, ["item"])))
        )
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0][0]["seen"] == 6
    assert seen[0][1] == {0: {"item": ["a"] * 3}, 1: {"item": []}}


def test_columns_have_the_same_type_wherever_they_are_written(duckdb, tmp_path):
    """DuckDB sums integers in 128 bits, which Parquet would hold as floats."""
    tables = row_table(duckdb, [(DAY, 1, "Bonn")]), event_table(duckdb, [(0, 1, "Bonn", 2, 0.1, True, "a")])
    duckdb.to_parquet(totals_as_of(*tables, ["user"], TOTALS), tmp_path / "totals.parquet")
    schema = pq.read_schema(tmp_path / "totals.parquet")
    whole = {name for name in TOTALS if schema.field(name).type == pa.int64()}
    assert whole == {"seen", "user", "week", "pieces"}
    assert {schema.field(name).type for name in TOTALS if name not in whole} == {pa.float64()}


def test_a_key_with_a_million_events_and_rows_takes_seconds(duckdb):
    count = 1_000_000
    numbers = ibis.range(count).unnest().name("n").as_table()
    events = duckdb.create_table("popular", numbers.select(_time=numbers.n * 7 % count, item=1, value=numbers.n))
    rows = duckdb.create_table("readers", numbers.select(_row=numbers.n, _time=numbers.n, item=1))
    begun = time.process_time()
    totals = totals_as_of(
        rows, events, ["item"], {"count": PastTotal("count"), "lately": PastTotal("count", days=1e-9)}
    )
    histories = history_as_of(rows, events, ["item"], 20, ["value"])
    for result, columns in ((totals, ["count", "lately"]), (histories, ["value"])):
        duckdb.create_table("found", result, overwrite=True)
        found = duckdb.table("found").filter(ibis._._row == 777_777).to_pyarrow().to_pylist()[0]
        if "value" in columns:
            # Seven times a number is the time before: every number has its own inverse.
            assert [value * 7 % count for value in found["value"]] == list(range(777_757, 777_777))
        else:
            assert found == {"_row": 777_777, "count": 777_777, "lately": 86}
    assert time.process_time() - begun < 20
