"""`cj_feed`: products on promotion (source) and coupons (target) shown to the same households, for MKT."""

from __future__ import annotations

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.datasets.complete_journey.coverage import OFFER, covered_purchases, offers
from torchrec_xd.datasets.complete_journey.crossings import ATTRIBUTES, DISCOUNT, PRICE, Totals, cross_attributes
from torchrec_xd.datasets.complete_journey.exposures import (
    COUPON_KEY,
    PRODUCT_KEY,
    VISIT_KEY,
    promoted_products,
    sent_coupons,
)
from torchrec_xd.datasets.complete_journey.journey import Journey
from torchrec_xd.datasets.complete_journey.rows import (
    PRODUCT,
    FeedFacts,
    catalogue,
    feed_facts,
    feed_rows,
    feed_vocabularies,
    product_rows,
    promoted_at,
)
from torchrec_xd.datasets.complete_journey.settings import PrepareSettings
from torchrec_xd.datasets.pipeline.buckets import LARGE_COUNTS, bucket, count_bucket
from torchrec_xd.datasets.pipeline.dataset import DataSet, DomainRows, SplitDays
from torchrec_xd.datasets.pipeline.past import as_of, latest, running
from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies, encode, vocabulary
from torchrec_xd.prepare.engine import count_rows

SPLIT = SplitDays(valid=190, test=273)
"""2017-07-10 and 2017-10-01. Of the campaigns of type A (February, May, August, October) validation has August's."""
NEGATIVES = 146
"""One in this many unbought products is kept by default."""
PRODUCT_HISTORY = 30
COUPON_HISTORY = 10
COUPON = {
    "days_valid": bucket(_.end_day - _.day, (29, 33, 34, 41, 47, 57, 72)),
    "covered_products": count_bucket(_.covered, LARGE_COUNTS),
    "covered_bought": count_bucket(_.covered_bought),
    "covered_rank": bucket(_.covered_rank, LARGE_COUNTS),
    "covered_price": PRICE,
    "covered_discount": DISCOUNT,
    "coupon_redemptions": count_bucket(_.anybody_count),
    "own_redemptions": count_bucket(_.own_count),
    "type_redemptions": count_bucket(_.type_count),
    "type_campaigns": count_bucket(_.sent_count),
}
"""Features of a coupon that need no vocabulary."""


def build(journey: Journey, settings: PrepareSettings) -> DataSet:
    """The data set's domains `product` and `coupon`."""
    one_in = settings.negatives or NEGATIVES
    coupons = sent_coupons(journey).cache()
    vocabularies = _vocabularies(journey.until(SPLIT.valid), coupons)
    promoted = promoted_at(promoted_products(journey, one_in, settings.seed), vocabularies).cache()
    facts = feed_facts(journey, [promoted, coupons], vocabularies, _histories(journey, vocabularies))
    products = catalogue(journey, vocabularies, product_id="product", product_type="type_code")
    offered = _with_offers(coupons, journey, facts.totals, vocabularies).cache()
    return DataSet(
        domains={
            "product": DomainRows(
                exposures=SPLIT.mark(promoted),
                label="bought",
                key=PRODUCT_KEY,
                cluster=VISIT_KEY,
                features=lambda rows: _product_rows(rows, products, facts),
            ),
            "coupon": DomainRows(
                exposures=SPLIT.mark(offered),
                label="redeemed",
                key=COUPON_KEY,
                cluster=COUPON_KEY,
                features=lambda rows: _coupon_rows(rows, facts),
            ),
        },
        vocabularies=vocabularies,
        sampling={"products on promotion that were not bought": 1 / one_in},
        notes=notes(journey),
    )


def _vocabularies(seen: Journey, coupons: Table) -> Vocabularies:
    return {
        **feed_vocabularies(seen),
        "product_id": vocabulary(seen.purchases, "product"),
        "product_type": vocabulary(seen.purchases, "type_code"),
        "coupon_upc": vocabulary(coupons.filter(_.day < SPLIT.valid), "coupon"),
    }


def product_history(journey: Journey, vocabularies: Vocabularies) -> Table:
    """The last products bought and their categories, one entry per household, day and product."""
    bought = journey.purchases.select("household", "day", "product", "category_code").distinct()
    bought = encode(bought, vocabularies, product_id="product", category="category_code")
    return latest(bought, ["household"], ["product"], PRODUCT_HISTORY, product="product_id", category="category")


def _histories(journey: Journey, vocabularies: Vocabularies) -> list[Table]:
    """Products bought and coupons redeemed."""
    redeemed = encode(journey.redemptions, vocabularies, coupon_upc="coupon")
    coupons = latest(redeemed, ["household"], ["coupon", "campaign"], COUPON_HISTORY, coupon="coupon_upc")
    return [product_history(journey, vocabularies), coupons]


def _with_offers(coupons: Table, journey: Journey, totals: Totals, vocabularies: Vocabularies) -> Table:
    """`sent_coupons` with what the coupons cover, what the household bought of it, and who redeemed before."""
    names = {name: f"{name}_code" for name in ATTRIBUTES}
    offered = encode(offers(journey, totals), vocabularies, coupon_upc="coupon", **names)
    rows = coupons.join(offered, OFFER).left_join(covered_purchases(journey), COUPON_KEY, rname="bought_{name}")
    own, of_type, count = ["household", "coupon"], ["household", "campaign_type"], _.count()
    rows = as_of(rows, running(journey.redemptions, ["coupon"], count=count), ["coupon"], "anybody")
    rows = as_of(rows, running(journey.redemptions, own, count=count), own, "own")
    rows = as_of(rows, running(journey.redemptions, of_type, count=count), of_type, "type")
    return as_of(rows, running(journey.mailings, of_type, count=count), of_type, "sent")


def _product_rows(exposures: Table, products: Table, facts: FeedFacts) -> Table:
    rows = product_rows(exposures, products, facts)
    names = ("product_id", "product_type", "package_size", "display_location", "mailer_location")
    return feed_rows(rows, facts, "bought", **{name: name for name in names}, **PRODUCT)


def _coupon_rows(exposures: Table, facts: FeedFacts) -> Table:
    rows = cross_attributes(exposures, facts.totals)
    campaign_type = _.campaign_type.cast("int32")
    return feed_rows(rows, facts, "redeemed", coupon_upc="coupon_upc", campaign_type=campaign_type, **COUPON)


def notes(journey: Journey) -> tuple[str, ...]:
    """How many labels of one split were decided in the time of the next."""
    began = journey.mailings.select("household", "campaign", began="day")
    redeemed = journey.redemptions.join(began, ["household", "campaign"])
    found = []
    for day, before, after in ((SPLIT.valid, "train", "valid"), (SPLIT.test, "train and valid", "test")):
        late = count_rows(redeemed.filter(_.began < day, _.day >= day).select(COUPON_KEY).distinct())
        found.append(
            f"rows are split by the first day of their week or campaign, which may run past a split's end: "
            f"{late} of the coupons redeemed in {before} were redeemed when {after} had begun"
        )
    return tuple(found)
