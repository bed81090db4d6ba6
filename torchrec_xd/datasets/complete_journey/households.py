"""What is known of a household before a day: who it is, how much it bought lately, how it deals with coupons."""

from __future__ import annotations

from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.datasets.complete_journey.journey import DEMOGRAPHICS, Journey
from torchrec_xd.datasets.pipeline.buckets import CENTS, DAYS, LARGE_COUNTS, PERCENTS, bucket, count_bucket, log1p
from torchrec_xd.datasets.pipeline.past import as_of, running
from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies, encode

RECENT_DAYS = 30


def _recent(total: str) -> Value:
    """A total of the last `RECENT_DAYS` days."""
    return _[f"all_{total}"].fill_null(0) - _[f"earlier_{total}"].fill_null(0)


USER = {
    "purchases_30d": count_bucket(_recent("purchases"), LARGE_COUNTS),
    "trips_30d": count_bucket(_recent("trips")),
    "spend_30d": count_bucket(_recent("cents"), CENTS),
    "days_since_trip": bucket(_.day - _.all_day, DAYS),
    "discounted_share": bucket(_.all_discounted * 100 // _.all_purchases, PERCENTS),
    "coupon_purchases": count_bucket(_.all_with_coupon),
    "redemptions": count_bucket(_.redeemed_count),
    "days_since_redemption": bucket(_.day - _.redeemed_day, DAYS),
    "campaigns": count_bucket(_.sent_count),
    "purchases_30d_log": log1p(_recent("purchases")),
    "coupon_purchases_log": log1p(_.all_with_coupon),
    "redemptions_log": log1p(_.redeemed_count),
    "campaigns_log": log1p(_.sent_count),
}
"""Features of the group `user` that change with time."""


def household_facts(journey: Journey, moments: Table, vocabularies: Vocabularies) -> Table:
    """The group `user` at every moment.

    Args:
        journey: whose purchases, redemptions and mailings count.
        moments: distinct (household, day).
        vocabularies: of `household_id`, `store_id` and the demographics.

    Returns:
        household, day, household_id, `DEMOGRAPHICS`, `USER`, store_id (where the household bought last) and activity
        (its shopping trips in the 30 days before).
    """
    key = ["household"]
    bought = _purchase_totals(journey).cache()
    facts = moments.mutate(window=_.day - RECENT_DAYS)
    facts = as_of(facts, bought, key, "all")
    facts = as_of(facts, bought, key, "earlier", day="window")
    facts = as_of(facts, running(journey.redemptions, key, count=_.count()), key, "redeemed")
    facts = as_of(facts, running(journey.mailings, key, count=_.count()), key, "sent")
    facts = facts.left_join(journey.demographics, key, rname="known_{name}")
    stores = journey.purchases.group_by("household", all_day="day").agg(last_store=_.store.max())
    facts = facts.left_join(stores, ["household", "all_day"], rname="store_{name}")
    texts = {name: name for name in DEMOGRAPHICS}
    facts = encode(facts, vocabularies, household_id="household", store_id="last_store", **texts)
    activity = _recent("trips").cast("int32")
    return facts.select("household", "day", "household_id", "store_id", *DEMOGRAPHICS, activity=activity, **USER)


def _purchase_totals(journey: Journey) -> Table:
    return running(
        journey.purchases,
        ["household"],
        purchases=_.count(),
        trips=_.basket.nunique(),
        cents=_.cents.sum(),
        discounted=_.discounted.sum(),
        with_coupon=_.with_coupon.sum(),
    )
