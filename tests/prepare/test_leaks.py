"""What training sees does not depend on what happens later."""

from datetime import timedelta

import pytest

from tests.support.raw_shop import VALID, contents, goods, likes, micros, prepare, recipe, views, write_shop, written

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
FEATURES = [
    goods("item", vocabulary={"min_count": 2}),
    goods("tags", "bag"),
    goods("price", "dense", standard=True, missing="mean", log1p=True),
    goods("price_step", value="price", quantiles=5),
    goods("last", "sequence", group="sequence", length=3, history={"events": "shown", "value": "category"}),
    goods("spent", "dense", total={"events": "shown", "what": "sum", "by": ["user"], "value": "price"}),
    goods("rate", total={"events": "shown", "what": "share", "by": ["item"], "value": "clicked"}, quantiles=4),
]


def later(moment, rows, others, time):
    """`rows` before a moment, and after it what is in `others`."""
    return [row for row in rows if time(row) < moment] + [row for row in others if time(row) >= moment]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The results for two shops that are the same until validation begins, and differ afterwards."""
    folder = tmp_path_factory.mktemp("shop")
    content = recipe(folder, *FEATURES, events=EVENTS)
    content["domains"]["goods"]["keep_negatives"] = 0.8
    made = []
    for name, seed in (("one", 1), ("other", 99)):
        goods_rows = later(VALID, views(), views(600, seed, users=30), lambda row: row["ts"])
        video_rows = later(micros(VALID), likes(), likes(300, seed, users=30), lambda row: row["at"] * 1_000_000)
        write_shop(folder, goods_rows, video_rows)
        made.append(prepare(folder, content, name))
    return made


def test_training_rows_are_the_same(pair):
    one, other = (contents(out) for out in pair)
    train = [name for name in one if "/train/" in name]
    assert len(train) == 2
    assert all(one[name] == other[name] for name in train)


def test_what_is_learnt_is_the_same(pair):
    one, other = (contents(out) for out in pair)
    learnt = [name for name in one if name.startswith("encoders/")]
    assert {"encoders/item.parquet", "encoders/last.parquet", "encoders/encoders.json"} < set(learnt)
    assert all(one[name] == other[name] for name in learnt)


def test_the_schema_is_the_same(pair):
    one, other = ((out / "schema.yaml").read_text().replace(str(out), "") for out in pair)
    assert one == other


def test_later_rows_are_not_the_same(pair):
    one, other = (written(out, "goods", ["valid", "test"]) for out in pair)
    assert one != other


def test_events_of_a_rows_own_instant_are_not_before_it(tmp_path):
    base = views(1)[0] | {"user_id": "u0", "clicked": 1}
    moments = [base["ts"] + timedelta(days=day) for day in (0, 1, 4, 11)]
    rows = [{**base, "n": n, "item": f"p{n}", "ts": moments[n // 2], "clicked": n % 2} for n in range(8)]
    folder = write_shop(tmp_path / "shop", rows)
    content = recipe(
        folder,
        goods("n_item", value="item"),
        goods("seen", "dense", total={"events": "shown", "what": "count", "by": ["user"]}),
        goods(
            "last", "sequence", group="sequence", table="n_item", length=9, history={"events": "shown", "value": "item"}
        ),
        events=EVENTS,
    )
    found = written(prepare(tmp_path, content), "goods")
    assert [found[n]["seen"] for n in range(8)] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert [len(found[n]["last"]) for n in range(8)] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert found[2]["last"] == found[3]["last"] == sorted([found[0]["n_item"], found[1]["n_item"]])
