"""What is known of a household before a day: who it is, how much it bought lately, how it deals with coupons."""

from __future__ import annotations

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.buckets import CENTS, DAYS, LARGE_COUNTS, PERCENTS, bucket, count_bucket, log1p
from torchrec_xd.prepare.journey import DEMOGRAPHICS, Journey
from torchrec_xd.prepare.past import as_of, running
from torchrec_xd.prepare.vocabulary import Vocabularies, encode

RECENT_DAYS = 30
USER = {
    "purchases_30d": count_bucket(_.recent_purchases, LARGE_COUNTS),
    "trips_30d": count_bucket(_.recent_trips),
    "spend_30d": count_bucket(_.recent_cents, CENTS),
    "days_since_trip": bucket(_.day - _.trip_day, DAYS),
    "discounted_share": bucket(_.discounted * 100 // _.purchases, PERCENTS),
    "coupon_purchases": count_bucket(_.with_coupon),
    "redemptions": count_bucket(_.redemptions),
    "days_since_redemption": bucket(_.day - _.redemption_day, DAYS),
    "campaigns": count_bucket(_.campaigns),
    "purchases_30d_log": log1p(_.recent_purchases),
    "coupon_purchases_log": log1p(_.with_coupon),
    "redemptions_log": log1p(_.redemptions),
    "campaigns_log": log1p(_.campaigns),
}
"""Features of the group `user` that change with time."""


def household_facts(journey: Journey, moments: Table, vocabularies: Vocabularies) -> Table:
    """The group `user` at every moment.

    Args:
        journey: whose purchases, redemptions and mailings count.
        moments: distinct (household, day).
        vocabularies: of `household_id` and the demographics.

    Returns:
        household, day, household_id, `DEMOGRAPHICS`, `USER`, activity (product lines bought in the 30 days before) and
        last_store (where the household was seen last, a number of the raw data).
    """
    facts = _with_purchases(moments, journey)
    key = ["household"]
    redemptions = running(journey.redemptions, key, redemptions=_.count())
    facts = as_of(facts, redemptions, key, redemptions="redemptions", redemption_day="day")
    facts = as_of(facts, running(journey.mailings, key, campaigns=_.count()), key, campaigns="campaigns")
    facts = facts.left_join(journey.demographics, key).drop("household_right")
    facts = encode(facts, vocabularies, household_id="household", **{name: name for name in DEMOGRAPHICS})
    activity = _.recent_purchases.cast("int32")
    return facts.select("household", "day", "household_id", "last_store", *DEMOGRAPHICS, activity=activity, **USER)


def _with_purchases(moments: Table, journey: Journey) -> Table:
    key = ["household"]
    totals = running(
        journey.purchases,
        key,
        purchases=_.count(),
        trips=_.basket.nunique(),
        cents=_.cents.sum(),
        discounted=_.discounted.sum(),
        with_coupon=_.with_coupon.sum(),
    ).cache()
    summed = {name: name for name in ("purchases", "trips", "cents")}
    facts = as_of(moments, totals, key, trip_day="day", discounted="discounted", with_coupon="with_coupon", **summed)
    earlier = moments.mutate(now=_.day, day=_.day - RECENT_DAYS)
    earlier = as_of(earlier, totals, key, **{f"earlier_{name}": name for name in summed}).drop("day")
    facts = facts.join(earlier.rename(day="now"), ["household", "day"])
    stores = journey.purchases.group_by("household", trip_day="day").agg(last_store=_.store.max())
    facts = facts.left_join(stores, ["household", "trip_day"]).drop("household_right", "trip_day_right")
    return facts.mutate(
        **{f"recent_{name}": _[name].fill_null(0) - _[f"earlier_{name}"].fill_null(0) for name in summed}
    )
