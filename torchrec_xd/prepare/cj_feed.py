"""`cj_feed`: products on promotion (source) and coupons (target) shown to the same households, for MKT."""

from __future__ import annotations

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.buckets import LARGE_COUNTS, bucket, count_bucket
from torchrec_xd.prepare.coverage import OFFER, covered_purchases, offers
from torchrec_xd.prepare.crossings import DISCOUNT, PRICE, cross_attributes
from torchrec_xd.prepare.dataset import DataSet, DomainRows, SplitDays
from torchrec_xd.prepare.engine import PrepareSettings
from torchrec_xd.prepare.exposures import COUPON_KEY, PRODUCT_KEY, VISIT_KEY, promoted_products, sent_coupons
from torchrec_xd.prepare.feed import (
    PRODUCT,
    PROMOTED,
    FeedFacts,
    feed_facts,
    feed_rows,
    feed_vocabularies,
    product_crossings,
)
from torchrec_xd.prepare.journey import Journey
from torchrec_xd.prepare.past import as_of, latest, running
from torchrec_xd.prepare.vocabulary import Vocabularies, encode, vocabulary

SPLIT = SplitDays(valid=190, test=273)
"""2017-07-10 and 2017-10-01. Of the campaigns of type A (February, May, August, October) validation has August's."""
PRODUCT_HISTORY = 30
COUPON_HISTORY = 10
COUPON = {
    "days_valid": bucket(_.end_day - _.day, (29, 33, 34, 41, 47, 57, 72)),
    "covered_products": count_bucket(_.covered, LARGE_COUNTS),
    "covered_bought": count_bucket(_.covered_bought),
    "covered_rank": bucket(_.covered_rank, LARGE_COUNTS),
    "covered_price": PRICE,
    "covered_discount": DISCOUNT,
    "coupon_redemptions": count_bucket(_.coupon_redeemed),
    "own_redemptions": count_bucket(_.own_redeemed),
    "type_redemptions": count_bucket(_.type_redeemed),
    "type_campaigns": count_bucket(_.type_sent),
}
"""Features of a coupon that need no vocabulary."""


def build(journey: Journey, settings: PrepareSettings) -> DataSet:
    """The data set's domains `product` and `coupon`."""
    products = promoted_products(journey, settings.negatives, settings.seed).cache()
    coupons = sent_coupons(journey).cache()
    seen = journey.until(SPLIT.valid)
    vocabularies = {
        **feed_vocabularies(seen),
        "product_id": vocabulary(seen.purchases, "product"),
        "product_type": vocabulary(seen.purchases, "product_type"),
        "coupon_upc": vocabulary(coupons.filter(_.day < SPLIT.valid), "coupon"),
    }
    facts = feed_facts(journey, [products, coupons], vocabularies, _histories(journey, vocabularies))
    offered = offers(journey, facts.totals).cache()
    bought = covered_purchases(journey).cache()
    return DataSet(
        domains={
            "product": DomainRows(
                exposures=SPLIT.mark(products),
                label="bought",
                key=PRODUCT_KEY,
                cluster=VISIT_KEY,
                features=lambda rows: _product_rows(rows, facts),
            ),
            "coupon": DomainRows(
                exposures=SPLIT.mark(coupons),
                label="redeemed",
                key=COUPON_KEY,
                cluster=COUPON_KEY,
                features=lambda rows: _coupon_rows(rows, facts, offered, bought),
            ),
        },
        vocabularies=vocabularies,
        sampling={"products on promotion that were not bought": 1 / settings.negatives},
        notes=_notes(journey),
    )


def _histories(journey: Journey, vocabularies: Vocabularies) -> list[Table]:
    """Products bought, one entry per household, day and product; and coupons redeemed."""
    bought = journey.purchases.select("household", "day", "product", "category").distinct()
    bought = encode(bought, vocabularies, product_id="product", category="category")
    lists = {"hist_product": "product_id", "hist_category": "category"}
    redeemed = encode(journey.redemptions, vocabularies, coupon_upc="coupon")
    key = ["household"]
    return [
        latest(bought, key, ["product"], PRODUCT_HISTORY, **lists),
        latest(redeemed, key, ["coupon", "campaign"], COUPON_HISTORY, hist_coupon="coupon_upc"),
    ]


def _product_rows(exposures: Table, facts: FeedFacts) -> Table:
    rows = product_crossings(exposures, facts)
    rows = encode(rows, facts.vocabularies, product_id="product", product_type="product_type")
    names = ("product_id", "product_type", *PROMOTED)
    return feed_rows(rows, facts, "bought", **{name: name for name in names}, **PRODUCT)


def _coupon_rows(exposures: Table, facts: FeedFacts, offered: Table, bought: Table) -> Table:
    rows = exposures.join(offered, OFFER).left_join(bought, COUPON_KEY).drop(*(f"{name}_right" for name in COUPON_KEY))
    rows = _with_campaigns(cross_attributes(rows, facts.totals), facts.journey)
    rows = encode(rows, facts.vocabularies, coupon_upc="coupon")
    campaign_type = _.campaign_type.cast("int32")
    return feed_rows(rows, facts, "redeemed", coupon_upc="coupon_upc", campaign_type=campaign_type, **COUPON)


def _with_campaigns(rows: Table, journey: Journey) -> Table:
    """`rows` with earlier redemptions: of the coupon by anybody and by the household, of the campaign's type by it."""
    redeemed, of_type = journey.redemptions, ["household", "campaign_type"]
    own = ["household", "coupon"]
    rows = as_of(rows, running(redeemed, ["coupon"], times=_.count()), ["coupon"], coupon_redeemed="times")
    rows = as_of(rows, running(redeemed, own, times=_.count()), own, own_redeemed="times")
    rows = as_of(rows, running(redeemed, of_type, times=_.count()), of_type, type_redeemed="times")
    return as_of(rows, running(journey.mailings, of_type, times=_.count()), of_type, type_sent="times")


def _notes(journey: Journey) -> tuple[str, ...]:
    began = journey.mailings.select("household", "campaign", began="day")
    redeemed = journey.redemptions.join(began, ["household", "campaign"])
    notes = []
    for day, before, after in ((SPLIT.valid, "train", "valid"), (SPLIT.test, "train and valid", "test")):
        late = redeemed.filter(_.began < day, _.day >= day).select(COUPON_KEY).distinct().count().execute()
        notes.append(
            f"rows are split by the first day of their week or campaign, which may run past a split's end: "
            f"{late} of the coupons redeemed in {before} were redeemed when {after} had begun"
        )
    return tuple(notes)
