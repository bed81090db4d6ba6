"""One recipe with every kind of feature, against Python loops over the raw rows."""

import math
from datetime import datetime, timedelta

import numpy as np
import pytest

from tests.support.raw_shop import (
    BERLIN,
    DAY,
    EVERY_KIND,
    goods,
    likes,
    micros,
    prepare,
    ranks,
    recipe,
    split_of,
    views,
    write_shop,
    written,
)
from torchrec_xd.data.schema_files import load_schema

EDGES = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0]
VIEWS, LIKES = views(), likes()
TIMES = {row["n"]: micros(row["ts"]) for row in VIEWS}
TRAIN = [row for row in VIEWS if split_of(TIMES[row["n"]]) == "train"]

MORE = [
    goods(
        "since_or_99",
        "dense",
        total={"events": "shown", "what": "days_since", "by": ["user"], "where": "clicked = 1"},
        missing=99,
        standard=True,
    ),
    goods(
        "click_worth",
        "dense",
        total={"events": "shown", "what": "share", "by": ["user"], "value": "clicked * price", "per": "price"},
        missing=-1,
    ),
    goods("category_seen", "dense", total={"events": "shown", "what": "count", "by": ["category"]}),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = write_shop(tmp_path_factory.mktemp("shop"), VIEWS, LIKES)
    events = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
    activity = {"events": "shown", "what": "count", "by": ["user"], "where": "clicked = 1", "days": 3}
    content = recipe(folder, *EVERY_KIND, *MORE, events=events, activity=activity)
    content["domains"]["goods"] |= {"labels": {"click": "clicked", "buy": "bought"}, "nullable": ["buy"]}
    return prepare(folder, content)


@pytest.fixture(scope="module")
def rows(out):
    return written(out, "goods")


def assert_feature(rows, column, expected):
    """`expected` of a raw row and its time is what is written, in every row."""
    assert len(rows) == len(VIEWS)
    for raw in VIEWS:
        want, found = expected(raw, TIMES[raw["n"]]), rows[raw["n"]][column]
        close = isinstance(want, float) and found == pytest.approx(want, rel=2e-5, abs=2e-5)
        assert close or found == want, (column, raw, found, want)


def past_of(row, keys, days=None, where=lambda event: True):
    now = TIMES[row["n"]]
    found = [event for event in VIEWS if all(event[key] == row[key] for key in keys) and TIMES[event["n"]] < now]
    found = [event for event in found if days is None or now - TIMES[event["n"]] <= days * DAY]
    return [event for event in found if where(event)]


def quantile_edges(values, buckets):
    """The least value of each bucket but the first: those that k/n of all values are below."""
    least = {}
    for value in sorted(set(values)):
        least.setdefault(sum(other < value for other in values) * buckets // len(values), value)
    return sorted(least.values())[1:]


def reached(value, edges):
    return 0 if value is None else 1 + sum(value >= edge for edge in edges)


def test_users_times_labels_and_splits(rows):
    assert_feature(rows, "user", lambda raw, time: raw["user_id"])
    assert_feature(rows, "time", lambda raw, time: time)
    assert_feature(rows, "split", lambda raw, time: split_of(time))
    assert_feature(rows, "click", lambda raw, time: raw["clicked"])
    assert_feature(rows, "buy", lambda raw, time: raw["bought"])
    assert {raw["bought"] for raw in VIEWS} == {None, True, False}


def test_seconds_since_1970_and_truth_values_as_labels(out):
    found = written(out, "videos")
    for raw in LIKES:
        row = found[raw["n"]]
        assert (row["time"], row["like"], row["split"]) == (
            raw["at"] * 1_000_000,
            raw["liked"],
            split_of(raw["at"] * 1_000_000),
        )


def test_domains_share_a_vocabulary_of_both_their_training_rows(rows, out):
    values = [raw["item"] for raw in TRAIN]
    values += [raw["item"] for raw in LIKES if split_of(raw["at"] * 1_000_000) == "train"]
    words = ranks(values, min_count=9, max_rows=6)
    assert sorted(words.values()) == [1, 2, 3, 4, 5]
    assert_feature(rows, "item", lambda raw, time: words.get(raw["item"], 0))
    videos = written(out, "videos")
    assert [videos[raw["n"]]["item"] for raw in LIKES] == [words.get(raw["item"], 0) for raw in LIKES]


def test_rows_by_frequency_and_ties_to_the_smaller_value(rows):
    words = ranks([raw["category"] for raw in TRAIN])
    counts = [[raw["category"] for raw in TRAIN].count(value) for value in words]
    assert len(set(counts)) < len(counts), "no tie in the data"
    assert_feature(rows, "category", lambda raw, time: words.get(raw["category"], 0))


def test_buckets(rows):
    edges = {2: 1, 4: 2, 6: 3}
    assert [reached(value, [2, 5.5]) for value in edges] == [2, 2, 3]
    assert_feature(rows, "category_edges", lambda raw, time: reached(raw["category"], [2, 5.5]))
    assert_feature(
        rows, "price_steps", lambda raw, time: reached(None if raw["price"] is None else raw["price"] * 2, EDGES)
    )


def test_quantiles_are_those_of_training_rows(rows):
    edges = quantile_edges([raw["price"] for raw in TRAIN if raw["price"] is not None], 4)
    assert_feature(rows, "price_quarter", lambda raw, time: reached(raw["price"], edges))
    sizes = [sum(rows[raw["n"]]["price_quarter"] == row for raw in TRAIN) for row in (1, 2, 3, 4)]
    assert max(sizes) - min(sizes) < 0.1 * sum(sizes), sizes


def test_hashed_values_stay_raw_and_row_numbers_are_kept(rows):
    assert_feature(rows, "hashed", lambda raw, time: raw["item"])
    assert_feature(rows, "as_is", lambda raw, time: raw["n"] % 7)


def test_bags_and_sequences(rows):
    tags = ranks([tag for raw in TRAIN for tag in raw["tags"] or []])
    tag_rows = lambda raw: [tags.get(tag, 0) for tag in raw["tags"] or [] if tag is not None]  # noqa: E731
    assert_feature(rows, "tags", lambda raw, time: sorted(tag_rows(raw)) or None)
    assert_feature(rows, "tags_order", lambda raw, time: tag_rows(raw) or None)
    words = ranks([word for raw in TRAIN for word in (raw["words"] or "").split("|") if word])
    assert_feature(
        rows,
        "words",
        lambda raw, time: sorted(words.get(word, 0) for word in (raw["words"] or "").split("|") if word) or None,
    )


def test_dense_numbers(rows):
    bounded = [min(max(raw["price"], 0.5), 9) for raw in TRAIN if raw["price"] is not None]
    missing = float(f"{np.mean(bounded):.6g}")
    change = lambda price: math.log1p(min(max(missing if price is None else price, 0.5), 9))  # noqa: E731
    changed = [change(raw["price"]) for raw in TRAIN]
    mean, deviation = float(np.mean(changed)), float(np.std(changed))
    assert_feature(rows, "price", lambda raw, time: (change(raw["price"]) - mean) / deviation)
    assert_feature(rows, "price_missing", lambda raw, time: float(raw["price"] is None))
    assert_feature(rows, "price_raw", lambda raw, time: raw["price"] or 0.0)


def test_vectors(rows):
    expected = {raw["n"]: None if raw["taste"] is None else list(np.float32(raw["taste"])) for raw in VIEWS}
    assert_feature(rows, "taste", lambda raw, time: expected[raw["n"]])


def test_calendar_of_a_time_zone(rows):
    clock = lambda time: datetime.fromtimestamp(time / 1e6, BERLIN)  # noqa: E731
    assert {clock(time).utcoffset() for time in TIMES.values()} == {timedelta(hours=1), timedelta(hours=2)}
    assert_feature(rows, "hour", lambda raw, time: clock(time).hour + 1)
    assert_feature(rows, "weekday", lambda raw, time: clock(time).weekday() + 1)
    assert_feature(rows, "day", lambda raw, time: clock(time).day)
    assert_feature(rows, "month", lambda raw, time: clock(time).month)
    assert_feature(rows, "hour_of_week", lambda raw, time: clock(time).weekday() * 24 + clock(time).hour + 1)


def test_histories(rows, out):
    values = [raw["item"] for raw in TRAIN]
    values += [raw["item"] for raw in LIKES if split_of(raw["at"] * 1_000_000) == "train"]
    words = ranks(values, min_count=9, max_rows=6)

    def expected(raw, time):
        past = past_of(raw, ["user_id"], where=lambda event: event["clicked"] == 1)
        past = sorted((TIMES[event["n"]], words.get(event["item"], 0)) for event in past)
        return [item for _, item in past][-4:]

    assert_feature(rows, "clicked_items", expected)
    assert max(len(row["clicked_items"]) for row in rows.values()) == 4


def test_totals(rows):
    assert_feature(rows, "seen", lambda raw, time: float(len(past_of(raw, ["user_id"], days=2.5))))
    assert_feature(
        rows, "spent", lambda raw, time: float(sum(event["price"] or 0 for event in past_of(raw, ["user_id"])))
    )

    def since(raw, time):
        past = past_of(raw, ["user_id"], where=lambda event: event["clicked"] == 1)
        return min((time - max(TIMES[event["n"]] for event in past)) / DAY, 9) if past else 0.0

    assert_feature(rows, "since", since)


def test_a_total_of_nothing_becomes_the_number_that_is_named(rows):
    def since(raw, time):
        past = past_of(raw, ["user_id"], where=lambda event: event["clicked"] == 1)
        return (time - max(TIMES[event["n"]] for event in past)) / DAY if past else 99.0

    train = [since(raw, TIMES[raw["n"]]) for raw in TRAIN]
    mean, deviation = float(np.mean(train)), float(np.std(train))
    assert 99.0 in train
    assert_feature(rows, "since_or_99", lambda raw, time: (since(raw, time) - mean) / deviation)


def test_a_share_of_a_sum(rows):
    def worth(raw, time):
        past = [event for event in past_of(raw, ["user_id"]) if event["price"] is not None]
        total = sum(event["price"] for event in past)
        return sum(event["clicked"] * event["price"] for event in past) / total if total else -1.0

    assert_feature(rows, "click_worth", worth)


def test_activity_is_a_column_of_every_domain(rows, out):
    clicks = lambda raw: past_of(raw, ["user_id"], days=3, where=lambda event: event["clicked"] == 1)  # noqa: E731
    assert_feature(rows, "activity", lambda raw, time: len(clicks(raw)))
    assert max(row["activity"] for row in rows.values()) > 0
    assert load_schema(out / "schema.yaml").activity == "activity"


def share(past):
    return sum(event["clicked"] for event in past) / len(past) if past else None


def test_totals_by_item_are_of_all_users(rows):
    assert_feature(rows, "item_share", lambda raw, time: share(past_of(raw, ["item"])) or 0.0)
    known = lambda raw: raw["category"] is not None  # noqa: E731
    assert_feature(rows, "category_seen", lambda raw, time: float(known(raw) and len(past_of(raw, ["category"]))))
    assert_feature(rows, "seen_step", lambda raw, time: reached(len(past_of(raw, ["user_id", "item"])), EDGES))


def test_quantiles_of_a_total(rows):
    shares = {raw["n"]: share(past_of(raw, ["user_id"])) for raw in VIEWS}
    edges = quantile_edges([shares[raw["n"]] for raw in TRAIN if shares[raw["n"]] is not None], 2)
    assert len(edges) == 1
    assert_feature(rows, "share_half", lambda raw, time: reached(shares[raw["n"]], edges))
