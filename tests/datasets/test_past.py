"""Facts strictly before a day, against Python loops over the events; buckets, hashes and vocabularies."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis import _

from tests.support.journey_tables import table
from torchrec_xd.datasets.pipeline.buckets import COUNTS, bucket, count_bucket, log1p, log_edges
from torchrec_xd.datasets.pipeline.past import as_of, latest, running
from torchrec_xd.datasets.pipeline.vocabulary import encode, vocabulary
from torchrec_xd.prepare.hashing import stable_hash

events = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 8), st.integers(1, 50)), min_size=1, max_size=30)


def event_table(found):
    keys, days, values = zip(*found, strict=True)
    return table(key=keys, day=days, value=values, place=list(range(len(found))))


def every_moment():
    moments = [(key, day) for key in range(1, 5) for day in range(-1, 11)]
    return table(key=[key for key, _day in moments], day=[day for _key, day in moments])


@settings(max_examples=15)
@given(events)
def test_totals_count_what_was_strictly_before(found):
    facts = running(event_table(found), ["key"], count=_.count(), total=_.value.sum())
    for row in as_of(every_moment(), facts, ["key"], "past").to_pyarrow().to_pylist():
        before = [(day, value) for key, day, value in found if key == row["key"] and day < row["day"]]
        expected = (
            (len(before), sum(value for _day, value in before), max(day for day, _value in before))
            if before
            else 3 * (None,)
        )
        assert (row["past_count"], row["past_total"], row["past_day"]) == expected


@settings(max_examples=15)
@given(events)
def test_lists_hold_the_last_events_strictly_before(found):
    facts = latest(event_table(found), ["key"], ["value", "place"], 4, values="value")
    rows = as_of(every_moment(), facts, ["key"], "past").to_pyarrow().to_pylist()
    assert len(rows) == 48
    for row in rows:
        before = sorted((day, value) for key, day, value in found if key == row["key"] and day < row["day"])
        assert row["past_values"] == ([value for _day, value in before][-4:] or None)


def test_another_column_can_be_the_day():
    facts = running(event_table([(1, 5, 7)]), ["key"], total=_.value.sum())
    rows = as_of(table(key=[1, 1], day=[9, 9], other=[5, 6]), facts, ["key"], "past", day="other").order_by("other")
    assert rows.past_total.to_pyarrow().to_pylist() == [None, 7]


def test_buckets_count_the_edges_that_are_reached():
    assert log_edges(16) == (1, 2, 3, 4, 6, 8, 12, 16)
    values = table(value=pa.array([None, 0, 1, 2, 5, 6, 16, 10**9], pa.int64()))
    ids = values.select(known=bucket(_.value, log_edges(16)), count=count_bucket(_.value, log_edges(16)))
    assert ids.to_pyarrow().to_pydict() == {"known": [0, 1, 2, 3, 5, 6, 9, 9], "count": [1, 1, 2, 3, 5, 6, 9, 9]}
    assert len(COUNTS) + 2 == 16


def test_log1p_of_nothing_is_0():
    values = table(value=pa.array([None, 0, 1], pa.int64())).select(log=log1p(_.value)).to_pyarrow()
    assert values["log"].type == pa.float32()
    assert values["log"].to_pylist() == [0.0, 0.0, 0.6931471824645996]


def reference_hash(values, seed):
    mixed = seed * 742_938_285 % (2**31 - 1)
    for value in values:
        mixed = (mixed + value) % (2**31 - 1) * 48271 % (2**31 - 1)
        mixed ^= mixed >> 15
    return mixed * 69621 % (2**31 - 1)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1)), min_size=1), st.integers(0, 2**31 - 2))
def test_hash_is_the_same_integer_arithmetic_everywhere(pairs, seed):
    first, second = zip(*pairs, strict=True)
    rows = table(first=pa.array(first, pa.int64()), second=pa.array(second, pa.int64()))
    hashed = rows.select(hash=stable_hash(rows, ["first", "second"], seed)).to_pyarrow()["hash"].to_pylist()
    assert hashed == [reference_hash(pair, seed) for pair in pairs]


def test_hashes_of_neighbours_spread_and_seeds_differ():
    rows = table(a=[a for a in range(300) for _b in range(100)], b=list(range(100)) * 300)
    counts = {}
    for seed in (0, 1):
        residue = stable_hash(rows, ["a", "b"], seed) % 10
        counts[seed] = rows.select(residue=residue).to_pyarrow()["residue"].to_pylist()
        for value in range(10):  # 3,000 expected, standard deviation 52
            assert abs(counts[seed].count(value) - 3_000) < 260
    both = sum(x == y for x, y in zip(counts[0], counts[1], strict=True))
    assert abs(both - 3_000) < 260


def test_vocabulary_ranks_by_frequency_and_encodes_the_unseen_as_0():
    seen = table(word=["b", "a", "c", "c", None, None, None])
    rows = table(word=["c", "a", "b", "new", None], place=[0, 1, 2, 3, 4])
    encoded = encode(rows, {"row": vocabulary(seen, "word")}, row="word").order_by("place")
    assert encoded.row.to_pyarrow().to_pylist() == [1, 2, 3, 0, 0]
    again = encode(rows, {"word": vocabulary(seen, "word")}, word="word").order_by("place")
    assert again.word.to_pyarrow().to_pylist() == [1, 2, 3, 0, 0]
    assert again.columns == rows.columns
