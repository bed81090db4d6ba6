"""`cj_feed`: products on promotion (source) and coupons (target) shown to the same households, for MKT."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.exposures import promoted_products, sent_coupons
from torchrec_xd.prepare.journey import DEMOGRAPHICS, Journey
from torchrec_xd.prepare.past import as_of, bucket, latest, log1p, log_edges, running, stable_hash
from torchrec_xd.prepare.vocabulary import encode, vocabulary

VALID_DAY = 190  # 2017-07-10
TEST_DAY = 273  # 2017-10-01
WINDOW = 30
HIST_PRODUCTS = 30
HIST_COUPONS = 10
COUNT = log_edges(64)
DAYS = [8, 15, 22, 29, 43, 57, 85, 113, 169, 225, 337]
MONEY = log_edges(100_000)
PERCENT = [1, 3, 5, 8, 10, 13, 15, 18, 20, 25, 30, 35, 40, 50, 60]


def split_of(day):
    return ibis.cases((day < VALID_DAY, "train"), (day < TEST_DAY, "valid"), else_="test")


def vocabularies(journey: Journey, coupons: Table) -> dict[str, Table]:
    bought = journey.purchases.filter(_.day < VALID_DAY)
    promoted = journey.promotions.filter(_.week * 7 - 13 < VALID_DAY)
    sent = coupons.filter(_.day < VALID_DAY)
    found = {
        "household_id": vocabulary(bought, "household"),
        "product_id": vocabulary(bought, "product"),
        "store": vocabulary(bought, "store"),
        "display_location": vocabulary(promoted, "display"),
        "mailer_location": vocabulary(promoted, "mailer"),
        "coupon_upc": vocabulary(sent, "coupon"),
    }
    for c in ("category", "manufacturer", "department", "brand", "product_type", "package_size"):
        found[c + "_id"] = vocabulary(bought, c)
    for c in DEMOGRAPHICS:
        found[c] = vocabulary(journey.demographics, c)
    return {n: t.cache() for n, t in found.items()}


class Feed:
    def __init__(self, journey, settings):
        self.j = journey
        self.products = promoted_products(journey, settings.negatives, settings.seed).cache()
        self.coupons = sent_coupons(journey).cache()
        self.v = vocabularies(journey, self.coupons)
        p = journey.purchases
        self.past_item = running(p, ["household", "product"], n=_.count(), quantity=_.quantity.sum()).cache()
        self.past_category = running(p, ["household", "category"], n=_.count(), quantity=_.quantity.sum()).cache()
        self.past_manufacturer = running(p, ["household", "manufacturer"], n=_.count()).cache()
        self.past_department = running(p, ["household", "department"], n=_.count()).cache()
        self.past_type = running(p, ["household", "product_type"], n=_.count()).cache()
        self.past_product = running(
            p.filter(_.quantity > 0), ["product"], n=_.count(), quantity=_.quantity.sum(), cents=_.cents.sum(), full_cents=_.full_cents.sum()
        ).cache()
        self.moments = self._moments().cache()
        self.offers = self._offers().cache()
        self.covered = self._covered().cache()

    def _moments(self):
        j = self.j
        m = ibis.union(self.products.select("household", "day"), self.coupons.select("household", "day"), distinct=True)
        spent = running(j.purchases, ["household"], lines=_.count(), trips=_.basket.nunique(), cents=_.cents.sum()).cache()
        red = running(j.redemptions, ["household"], n=_.count())
        sent = running(j.mailings, ["household"], n=_.count())
        lines = j.purchases.select("household", "day", "product", "category").distinct()
        lines = encode(lines, self.v, product_id="product", category_id="category")
        hist = latest(lines, ["household"], ["product"], HIST_PRODUCTS, hist_product="product_id", hist_category="category_id")
        lr = encode(j.redemptions, self.v, coupon_upc="coupon")
        histc = latest(lr, ["household"], ["coupon", "campaign"], HIST_COUPONS, hist_coupon="coupon_upc")
        m = as_of(m, spent, ["household"], lines="lines", trips="trips", cents="cents", last_day="day")
        m = as_of(m.mutate(now=_.day, day=_.day - WINDOW), spent, ["household"], lines0="lines", trips0="trips", cents0="cents")
        m = m.mutate(day=_.now).drop("now")
        m = as_of(m, red, ["household"], redemptions="n", redemption_day="day")
        m = as_of(m, sent, ["household"], campaigns="n")
        m = as_of(m, hist, ["household"], hist_product="hist_product", hist_category="hist_category")
        m = as_of(m, histc, ["household"], hist_coupon="hist_coupon")
        stores = j.purchases.group_by(["household", "day"]).agg(store=_.store.max())
        m = as_of(m, stores.mutate(until=_.day.lead().over(ibis.window(group_by="household", order_by="day")).fill_null(10**6)), ["household"], last_store="store")
        m = m.mutate(lines30=_.lines.fill_null(0) - _.lines0.fill_null(0), trips30=_.trips.fill_null(0) - _.trips0.fill_null(0), cents30=_.cents.fill_null(0) - _.cents0.fill_null(0))
        m = encode(m, self.v, household_id="household")
        d = encode(j.demographics, self.v, **{c: c for c in DEMOGRAPHICS}) if False else None
        dem = j.demographics.rename({f"{c}_text": c for c in DEMOGRAPHICS})
        dem = encode(dem, self.v, **{c: f"{c}_text" for c in DEMOGRAPHICS})
        dem = dem.select("household", *DEMOGRAPHICS)
        m = m.left_join(dem, "household").drop("household_right")
        m = m.mutate(**{c: _[c].fill_null(0) for c in DEMOGRAPHICS})
        return m.select(
            "household", "day", "household_id", *DEMOGRAPHICS, "last_store",
            activity=_.lines30.cast("int32"),
            purchases_30d=bucket(_.lines30, log_edges(256)),
            trips_30d=bucket(_.trips30, log_edges(32)),
            spend_30d=bucket(_.cents30, MONEY),
            days_since_trip=bucket(_.day - _.last_day, [1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 22, 29, 57, 113]),
            redemptions_before=bucket(_.redemptions.fill_null(0), COUNT),
            days_since_redemption=bucket(_.day - _.redemption_day, DAYS),
            campaigns_before=bucket(_.campaigns.fill_null(0), log_edges(16)),
            purchases_30d_log=log1p(_.lines30),
            redemptions_before_log=log1p(_.redemptions),
            campaigns_before_log=log1p(_.campaigns),
            hist_product=_.hist_product, hist_category=_.hist_category, hist_coupon=_.hist_coupon,
        )

    def _offers(self):
        """campaign, coupon: dominant attributes, price level."""
        j = self.j
        cov = j.coupons.join(j.products, "product")
        offers = cov.group_by(["campaign", "coupon"]).agg(covered=_.count())
        for c in ("category", "manufacturer", "department", "brand"):
            n = cov.filter(cov[c].notnull()).group_by(["campaign", "coupon", c]).agg(n=_.count())
            n = n.mutate(place=ibis.row_number().over(group_by=["campaign", "coupon"], order_by=[n.n.desc(), n[c]]))
            n = n.filter(_.place == 0).select("campaign", "coupon", c)
            offers = offers.left_join(n, ["campaign", "coupon"]).drop("campaign_right", "coupon_right")
        starts = j.mailings.select("campaign", "day").distinct()
        facts = as_of(j.coupons.join(starts, "campaign"), self.past_product, ["product"], n="n", quantity="quantity", cents="cents", full_cents="full_cents")
        facts = facts.group_by(["campaign", "coupon"]).agg(popularity=_.n.sum(), quantity=_.quantity.sum(), cents=_.cents.sum(), full_cents=_.full_cents.sum())
        return offers.join(facts, ["campaign", "coupon"])

    def _covered(self):
        j = self.j
        b = j.purchases.group_by(["household", "product", "day"]).agg(n=_.count(), quantity=_.quantity.sum())
        m = j.mailings.select("household", "campaign", start="day")
        b = b.join(m, [b.household == m.household, b.day < m.start]).drop("household_right")
        b = b.group_by(["household", "campaign", "product"]).agg(n=_.n.sum(), quantity=_.quantity.sum(), last=_.day.max())
        c = b.join(j.coupons, ["campaign", "product"])
        return c.group_by(["household", "campaign", "coupon"]).agg(item_n=_.n.sum(), item_quantity_n=_.quantity.sum(), item_last=_.last.max(), covered_bought=_.count())

    def crossings(self, t):
        t = as_of(t, self.past_category, ["household", "category"], category_n="n", category_q="quantity", category_last="day")
        t = as_of(t, self.past_manufacturer, ["household", "manufacturer"], manufacturer_n="n", manufacturer_last="day")
        t = as_of(t, self.past_department, ["household", "department"], department_n="n", department_last="day")
        return t

    def finish(self, t, **specific):
        t = t.join(self.moments, ["household", "day"])
        t = encode(t, self.v, category_id="category", manufacturer_id="manufacturer", department_id="department", brand_id="brand")
        t = t.mutate(store_raw=_.store).drop("store")
        t = encode(t, self.v, store="store_raw")
        day = t.day
        return t.select(
            *t[[c for c in specific]].columns if False else [],
            "order_key", "order_tie", "household", "weight", "activity",
            "household_id", *DEMOGRAPHICS, "purchases_30d", "trips_30d", "spend_30d", "days_since_trip", "redemptions_before", "days_since_redemption", "campaigns_before",
            "purchases_30d_log", "redemptions_before_log", "campaigns_before_log",
            "hist_product", "hist_category", "hist_coupon",
            category=_.category_id, manufacturer=_.manufacturer_id, department=_.department_id, brand=_.brand_id,
            item_purchases=bucket(_.item_n.fill_null(0), COUNT),
            item_quantity=bucket(_.item_quantity_n.fill_null(0), COUNT),
            item_recency=bucket(_.day - _.item_last, DAYS),
            item_popularity=bucket(_.popularity.fill_null(0), log_edges(20000)),
            category_purchases=bucket(_.category_n.fill_null(0), log_edges(128)),
            category_quantity=bucket(_.category_q.fill_null(0), log_edges(128)),
            category_recency=bucket(_.day - _.category_last, DAYS),
            manufacturer_purchases=bucket(_.manufacturer_n.fill_null(0), log_edges(128)),
            manufacturer_recency=bucket(_.day - _.manufacturer_last, DAYS),
            department_purchases=bucket(_.department_n.fill_null(0), log_edges(1024)),
            department_recency=bucket(_.day - _.department_last, DAYS),
            item_purchases_log=log1p(_.item_n), item_quantity_log=log1p(_.item_quantity_n),
            item_recency_log=log1p((_.day - _.item_last).fill_null(400)),
            category_purchases_log=log1p(_.category_n),
            category_recency_log=log1p((_.day - _.category_last).fill_null(400)),
            manufacturer_purchases_log=log1p(_.manufacturer_n),
            department_purchases_log=log1p(_.department_n),
            item_popularity_log=log1p(_.popularity),
            store=_.store,
            **specific,
        )

    def product(self, rows):
        t = rows.join(self.j.products, "product")
        t = as_of(t, self.past_item, ["household", "product"], item_n="n", item_quantity_n="quantity", item_last="day")
        t = self.crossings(t)
        t = as_of(t, self.past_type, ["household", "product_type"], type_n="n", type_last="day")
        t = as_of(t, self.past_product, ["product"], popularity="n", p_quantity="quantity", p_cents="cents", p_full="full_cents")
        t = encode(t, self.v, product_id="product", product_type_id="product_type", package_size_id="package_size", display_location="display", mailer_location="mailer")
        return self.finish(
            t, bought=_.bought, product_id=_.product_id, product_type=_.product_type_id, package_size=_.package_size_id,
            display_location=_.display_location, mailer_location=_.mailer_location,
            price_level=bucket(_.p_full // _.p_quantity.nullif(0), log_edges(5000)),
            discount_depth=bucket((_.p_full - _.p_cents) * 100 // _.p_full.nullif(0), PERCENT),
            type_purchases=bucket(_.type_n.fill_null(0), log_edges(128)),
            type_recency=bucket(_.day - _.type_last, DAYS),
        )

    def coupon(self, rows):
        t = rows.mutate(weight=ibis.literal(1.0, "float32"))
        t = t.join(self.offers, ["campaign", "coupon"])
        t = t.left_join(self.covered, ["household", "campaign", "coupon"]).drop("household_right", "campaign_right", "coupon_right")
        t = self.crossings(t)
        red = self.j.redemptions
        t = as_of(t, running(red, ["coupon"], n=_.count()), ["coupon"], coupon_red="n")
        t = as_of(t, running(red, ["household", "coupon"], n=_.count()), ["household", "coupon"], own_red="n")
        t = as_of(t, running(red, ["household", "campaign_type"], n=_.count()), ["household", "campaign_type"], type_red="n")
        t = as_of(t, running(self.j.mailings, ["household", "campaign_type"], n=_.count()), ["household", "campaign_type"], type_sent="n")
        t = encode(t, self.v, coupon_upc="coupon")
        t = t.join(self.moments.select("household", "day", store="last_store"), ["household", "day"])
        return self.finish(
            t, redeemed=_.redeemed, coupon_upc=_.coupon_upc, campaign_type=_.campaign_type.cast("int32"),
            days_valid=bucket(_.end_day - _.day, [28, 32, 33, 34, 40, 46, 48, 57, 66, 71, 161]),
            covered_products=bucket(_.covered, log_edges(1024)),
            covered_bought=bucket(_.covered_bought.fill_null(0), COUNT),
            covered_price=bucket(_.full_cents // _.quantity.nullif(0), log_edges(5000)),
            covered_discount=bucket((_.full_cents - _.cents) * 100 // _.full_cents.nullif(0), PERCENT),
            coupon_redemptions=bucket(_.coupon_red.fill_null(0), COUNT),
            own_redemptions=bucket(_.own_red.fill_null(0), [1, 2, 3]),
            type_redemptions=bucket(_.type_red.fill_null(0), COUNT),
            type_campaigns=bucket(_.type_sent.fill_null(0), [1, 2, 3, 4, 6, 8]),
        )
