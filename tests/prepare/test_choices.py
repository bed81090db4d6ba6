"""Which rows are kept, and which split they are in: by hash, by user, by column; alike whatever runs the queries."""

import math
from datetime import timezone

import duckdb
import pytest

from tests.support.raw_shop import DAY, goods, micros, prepare, recipe, rows_of_files, views, write_shop, written
from torchrec_xd.prepare import execution

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
FEATURES = [
    goods("item"),
    goods("tags", "bag"),
    goods("price", "dense", standard=True),
    goods("last", "sequence", group="sequence", table="item", length=3, history={"events": "shown", "value": "item"}),
    goods("spent", "dense", total={"events": "shown", "what": "sum", "by": ["user"], "value": "price"}),
    goods("rate", "dense", total={"events": "shown", "what": "share", "by": ["item"], "value": "clicked"}),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("shop"), views(2_000, users=60))


def kept(tmp_path, shop, share, **domain):
    content = recipe(shop, goods("item"))
    content["domains"]["goods"] |= {"keep_negatives": share, **domain}
    return written(prepare(tmp_path, content), "goods")


def test_a_share_of_the_negatives_is_kept_and_weighs_more(tmp_path, shop):
    raw = {row["n"]: row for row in views(2_000, users=60)}
    rows = kept(tmp_path, shop, 0.25)
    positives = [n for n in raw if raw[n]["clicked"]]
    assert set(positives) <= set(rows)
    negatives = [row for n, row in rows.items() if n not in set(positives)]
    expected = 0.25 * (len(raw) - len(positives))
    assert abs(len(negatives) - expected) < 3 * (expected * 0.75) ** 0.5
    assert {row["weight"] for row in negatives} == {4.0}
    assert {rows[n]["weight"] for n in positives} == {1.0}


def test_more_negatives_are_kept_at_a_larger_share_and_the_seed_chooses_others(tmp_path, shop):
    few, more = kept(tmp_path / "a", shop, 0.2), kept(tmp_path / "b", shop, 0.6)
    assert set(few) < set(more)
    content = recipe(shop, goods("item"), seed=7)
    content["domains"]["goods"]["keep_negatives"] = 0.2
    assert set(written(prepare(tmp_path / "c", content), "goods")) != set(few)


def test_rows_of_a_user_and_moment_are_chosen_one_by_one_by_the_domains_key(tmp_path):
    moment = views(1)[0]["ts"]
    base = {**views(1)[0], "ts": moment, "clicked": 0, "user_id": "u1", "item": "p1"}
    same = [{**base, "n": n, "item": "p1"} for n in range(200)]
    folder = write_shop(tmp_path / "shop", [*views(100), *({**row, "n": row["n"] + 1000} for row in same)])
    together = [n for n in kept(tmp_path / "a", folder, 0.5) if n >= 1000]
    assert len(together) in (0, 200)
    single = [n for n in kept(tmp_path / "b", folder, 0.5, key=["n"]) if n >= 1000]
    assert 60 < len(single) < 140


def test_cold_users_are_never_trained_on(tmp_path, shop):
    rows = written(prepare(tmp_path, recipe(shop, goods("item"), cold_users=0.3)), "goods")
    cold = {row["user"] for row in rows.values() if row["cold"]}
    assert 8 <= len(cold) <= 28
    assert not any(row["user"] in cold for row in rows.values() if row["split"] == "train")
    raw = {row["n"]: row for row in views(2_000, users=60)}
    left_out = {raw[n]["user_id"] for n in raw if n not in rows}
    assert left_out == cold
    assert {row["cold"] for row in rows.values() if row["user"] not in cold} == {0}


def test_the_last_share_of_every_users_rows(tmp_path, shop):
    split = {"last_share": {"valid": 0.2, "test": 0.1}}
    rows = written(prepare(tmp_path, recipe(shop, goods("item"), split=split)), "goods")
    assert len(rows) == 2_000
    for user in {row["user"] for row in rows.values()}:
        own = sorted((row for row in rows.values() if row["user"] == user), key=lambda row: row["time"])
        test, valid = int(len(own) * 0.1), int(len(own) * 0.2)
        found = [row["split"] for row in own]
        assert [found.count(each) for each in ("valid", "test")] == [valid, test]
        times = {each: [row["time"] for row in own if row["split"] == each] for each in ("train", "valid", "test")}
        assert max(times["train"]) <= min(times["valid"])
        assert not test or max(times["valid"]) <= min(times["test"])


def test_a_column_says_the_split(tmp_path, shop):
    parts = "CASE WHEN n % 5 = 0 THEN 'test' WHEN n % 5 = 1 THEN 'valid' ELSE 'train' END AS part"
    content = recipe(
        shop,
        goods("item"),
        views={"parted": f"SELECT *, {parts} FROM views", "parted_likes": f"SELECT *, {parts} FROM likes"},
        split={"column": "part"},
    )
    content["domains"]["goods"]["rows"] = "parted"
    content["domains"]["videos"]["rows"] = "parted_likes"
    for domain in ("goods", "videos"):
        for n, row in written(prepare(tmp_path, content), domain).items():
            assert row["split"] == {0: "test", 1: "valid"}.get(n % 5, "train")


def all_choices(shop, **changes):
    content = recipe(shop, *FEATURES, events=EVENTS, cold_users=0.1, **changes)
    content["domains"]["goods"] |= {"keep_negatives": 0.5}
    return content


def test_any_number_of_threads_writes_the_same_files(tmp_path, shop):
    made = [
        rows_of_files(prepare(tmp_path / str(threads), all_choices(shop, engine={"duckdb": {"threads": threads}})))
        for threads in (1, 2, 4)
    ]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 2 * 3 + 3


def test_any_number_of_buckets_writes_the_same_rows(tmp_path, shop, monkeypatch):
    one = prepare(tmp_path, all_choices(shop), "one")
    monkeypatch.setattr(execution, "BUCKET_BYTES", 30_000)
    many = prepare(tmp_path, all_choices(shop), "many")
    assert len(list((many / "goods" / "train").glob("*.parquet"))) > 1
    for domain in ("goods", "videos"):
        assert written(many, domain) == written(one, domain)
    for name in ("encoders/item.parquet", "encoders/tags.parquet", "encoders/encoders.json"):
        assert (one / name).read_bytes() == (many / name).read_bytes()


def utc(at):
    return micros(at, timezone.utc)


TIMES = {
    "dates": ("ts::DATE", None, lambda at: micros(at.replace(hour=0, minute=0))),
    "zoned": ("timezone('UTC', ts)", None, utc),
    "milliseconds": ("epoch_ms(ts)", "ms", utc),
    "microseconds": ("epoch_us(ts)", "us", utc),
    "fractions": ("epoch(ts) + 0.5", "s", lambda at: utc(at) + 500_000),
}


@pytest.mark.parametrize("form", TIMES)
def test_times_in_every_form_become_microseconds(tmp_path, form):
    sql, unit, expected = TIMES[form]
    folder = write_shop(tmp_path / "shop")
    duckdb.sql(f"COPY (SELECT * REPLACE ({sql} AS ts) FROM '{folder}/views.parquet') TO '{folder}/other.parquet'")
    content = recipe(folder, goods("item"), inputs={"views": "other.parquet", "likes": "likes.csv"})
    content["domains"]["goods"] |= {"time_unit": unit} if unit else {}
    rows = written(prepare(tmp_path, content), "goods")
    assert {n: row["time"] for n, row in rows.items()} == {row["n"]: expected(row["ts"]) for row in views()}


def test_integer_users_stay_integers(tmp_path, shop):
    cast = "SELECT * REPLACE (substr(user_id, 2)::INT AS user_id) FROM"
    content = recipe(shop, goods("item"), views={"a": f"{cast} views", "b": f"{cast} likes"})
    content["domains"]["goods"]["rows"], content["domains"]["videos"]["rows"] = "a", "b"
    rows = written(prepare(tmp_path, content), "goods")
    assert {n: row["user"] for n, row in rows.items()} == {
        row["n"]: int(row["user_id"][1:]) for row in views(2_000, users=60)
    }
    assert (
        min(row["time"] for row in rows.values()) // DAY == micros(min(r["ts"] for r in views(2_000, users=60))) // DAY
    )


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_ties_of_time_do_not_depend_on_labels(tmp_path, share):
    """All rows of a user are of one day, and labels are drawn by chance: no split may have fewer of them."""
    rows = [{**row, "ts": row["ts"].replace(day=21, month=10, hour=0, minute=0)} for row in views(6_000, users=60)]
    shop = write_shop(tmp_path / "shop", rows)
    content = recipe(shop, goods("item"), split={"last_share": {"valid": 0.2, "test": share}})
    content["domains"]["goods"]["keep"] = []  # a number of the row would tell them apart
    files = rows_of_files(prepare(tmp_path, content))
    for part in ("valid", "test"):
        labels = [row["click"] for name, rows in files.items() if f"goods/{part}/" in name for row in rows]
        assert sum(labels) / len(labels) == pytest.approx(0.4, abs=4 * (0.24 / len(labels)) ** 0.5)


def test_nan_is_missing_as_null_is(tmp_path):
    rows = [{**row, "price": math.nan if row["n"] % 3 == 0 else row["price"]} for row in views()]
    feature = goods("price", "dense", missing="mean", indicator=True)
    share = {"events": "shown", "what": "share", "by": ["user"], "value": "price", "per": "price - price"}
    content = recipe(
        write_shop(tmp_path / "shop", rows), feature, goods("past", "dense", total=share, indicator=True), events=EVENTS
    )
    found = written(prepare(tmp_path, content), "goods")
    assert {n: row["price_missing"] for n, row in found.items()} == {
        row["n"]: float(row["price"] is None or math.isnan(row["price"])) for row in rows
    }
    assert all(math.isfinite(row["past"]) and row["past_missing"] == 1 for row in found.values())
