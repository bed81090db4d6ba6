"""`cj_feed` against a reference that loops over the raw rows, and against changes that it must not see."""

from __future__ import annotations

import copy
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.support.naive_journey import VALID_DAY, Naive
from tests.support.raw_journey import START, purchase, redemption, tiny, varied, week_of, write_raw
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.datasets.complete_journey import feed as cj_feed
from torchrec_xd.datasets.complete_journey.journey import load, raw_files
from torchrec_xd.datasets.pipeline.dataset import ORDER

SCHEMA = Path(__file__).parents[2] / "configs" / "schemas" / "cj_feed.yaml"


def silent(line: str) -> None:
    assert line


def prepared(raw, folder, **settings):
    """The rows by (domain, split)."""
    manifest = prepare(
        "cj_feed", folder / "out", PrepareSettings(threads=1, **settings), silent, raw=write_raw(raw, folder / "raw")
    )
    return {
        (domain, split): ds.dataset(folder / "out" / domain / split).to_table()
        for domain, splits in manifest.domains.items()
        for split, found in splits.items()
        if found.rows
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return prepared(tiny(), tmp_path_factory.mktemp("tiny"), negatives=1)


def only(rows: pa.Table, **known) -> dict:
    """The one row with these values."""
    found = [row for row in rows.to_pylist() if all(row[name] == value for name, value in known.items())]
    assert len(found) == 1
    return found[0]


def test_rows_and_positives(small):
    counts = {
        key: (rows.num_rows, sum(rows["bought" if key[0] == "product" else "redeemed"].to_pylist()))
        for key, rows in small.items()
    }
    assert counts == {
        ("product", "train"): (8, 5),
        ("product", "valid"): (4, 1),
        ("product", "test"): (2, 1),
        ("coupon", "train"): (4, 1),
        ("coupon", "valid"): (1, 1),
        ("coupon", "test"): (4, 1),
    }


def test_a_coupon_counted_by_hand(small):
    """Household 1, campaign 1 from day 24: coupon 501 covers products 1, 2 and 3, of which it had bought 1, 3, 1, 2."""
    row = only(small["coupon", "train"], household=1, redeemed=1)
    expected = {
        "weight": 1.0,
        "activity": 2,
        "household_id": 1,
        "age": 1,
        "income": 1,
        "home_ownership": 0,
        "kids_count": 1,
        "purchases_30d": 5,
        "trips_30d": 3,
        "spend_30d": 20,  # 900 cents
        "days_since_trip": 5,
        "discounted_share": 11,  # one line of four
        "coupon_purchases": 2,
        "redemptions": 1,
        "days_since_redemption": 0,
        "campaigns": 1,  # this one does not count
        "hist_product": [1, 3, 1, 2],
        "hist_category": [1, 2, 1, 1],
        "hist_coupon": None,
        "category": 1,
        "department": 1,
        "item_purchases": 5,
        "item_quantity": 5,
        "item_recency": 5,
        "category_purchases": 4,
        "coupon_upc": 1,
        "campaign_type": 1,
        "days_valid": 4,  # 36 days
        "covered_products": 4,
        "covered_bought": 4,
        "covered_rank": 2,
        "store": 1,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["item_purchases_log"] == pytest.approx(1.6094379)


def test_a_product_counted_by_hand(small):
    """Household 1 in week 4 (days 15 to 21) bought product 1, which it had bought on day 3 (two for 3 instead of 4)."""
    row = only(small["product", "train"], household=1, product_id=1)
    expected = {
        "bought": 1,
        "weight": 1.0,
        "activity": 1,
        "hist_product": [1, 3],
        "item_purchases": 2,
        "item_quantity": 3,
        "item_recency": 10,  # twelve days
        "category_purchases": 2,
        "type_purchases": 2,
        "price_level": 16,  # 200 cents
        "discount_depth": 11,  # 25 per cent
        "display_location": 1,
        "mailer_location": 1,
    }
    assert {name: row[name] for name in expected} == expected


def test_what_training_has_not_seen_is_row_0(small):
    rows = small["coupon", "test"]
    assert only(rows, household=3, redeemed=1)["coupon_upc"] == 0
    assert set(rows.filter(pa.compute.equal(rows["household"], 3))["household_id"].to_pylist()) == {0}


def test_columns_are_those_of_the_schema(small):
    schema = load_schema(SCHEMA)
    others = {schema.user, schema.weight, schema.activity}
    for domain in schema.domains:
        label = {task.label for task in schema.tasks if task.domain == domain}
        columns = {feature.column for feature in schema.features_of(domain)}
        assert set(small[domain, "train"].column_names) == columns | others | label


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    """A varied journey and its data set."""
    raw = varied(0)
    journey = load(ibis.duckdb.connect(threads=1), raw_files(write_raw(raw, tmp_path_factory.mktemp("year"))))
    return raw, cj_feed.build(journey, PrepareSettings(negatives=4))


def with_keys(domain) -> list[tuple[list[int], dict]]:
    """Rows as (key of the exposure, features), the key brought through in one of the columns that order rows."""
    code = sum(
        (domain.exposures[name] * 1000**place for place, name in enumerate(domain.key)), ibis.literal(0, "int64")
    )
    exposures = domain.exposures.mutate(**{ORDER[0]: code, ORDER[1]: code})
    rows = domain.features(exposures).to_pyarrow().to_pylist()
    return [([row[ORDER[0]] // 1000**place % 1000 for place in range(len(domain.key))], row) for row in rows]


@pytest.mark.parametrize("name", ["product", "coupon"])
def test_features_are_what_loops_over_earlier_events_find(year, name):
    raw, data_set = year
    naive = Naive(raw)
    rows = with_keys(data_set.domains[name])
    assert len(rows) > 200
    for key, row in rows:
        expected = getattr(naive, name)(*key)
        found = {feature: row[feature] for feature in expected}
        assert equal(found, expected), (key, found, expected)


def equal(found: dict, expected: dict) -> bool:
    close = {
        name: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for name, value in expected.items()
    }
    return found == close


def test_training_rows_do_not_see_what_comes_later(tmp_path):
    """Everything from the first day of validation on is replaced; training rows, vocabularies included, stay."""
    raw = varied(1)
    later = copy.deepcopy(raw)
    future = START.toordinal() + VALID_DAY
    later["transactions"] = [
        row for row in raw["transactions"] if row["transaction_timestamp"].toordinal() < future
    ] + [purchase(13, product, 200 + product, coupon_disc=1.0) for product in range(1, 31)]
    later["promotions"] = [row for row in raw["promotions"] if row["week"] < week_of(VALID_DAY)]
    later["coupon_redemptions"] = [
        row for row in raw["coupon_redemptions"] if row["redemption_date"].toordinal() < future
    ] + [redemption(raw["campaigns"][0]["household_id"], raw["coupons"][0]["coupon_upc"], 8, 330)]
    before, after = prepared(raw, tmp_path / "before", negatives=4), prepared(later, tmp_path / "after", negatives=4)
    assert before["product", "train"].num_rows > 100
    assert after["product", "train"] == before["product", "train"]
    late = [row for row in raw["coupon_redemptions"] if row["redemption_date"].toordinal() >= future]
    columns = before["coupon", "train"].drop_columns("redeemed").column_names
    assert late
    assert after["coupon", "train"].select(columns) == before["coupon", "train"].select(columns)
    assert after["coupon", "test"] != before["coupon", "test"]


def test_rows_do_not_depend_on_threads(tmp_path):
    settings = {"negatives": 3, "part_rows": 300}
    one = prepared(varied(2), tmp_path / "one", **settings)
    manifest = prepare(
        "cj_feed",
        tmp_path / "two",
        PrepareSettings(threads=2, memory_limit_gb=0.5, **settings),
        silent,
        raw=tmp_path / "one" / "raw",
    )
    for (domain, split), rows in one.items():
        files = manifest.domains[domain][split].files
        assert ds.dataset(tmp_path / "two" / domain / split).to_table() == rows
        assert sum(files.values()) == rows.num_rows
    assert len(manifest.domains["product"]["train"].files) > 1
