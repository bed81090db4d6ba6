"""Exposures with their labels: products on promotion where a household shopped, and coupons sent to it."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.journey import Journey, week_day
from torchrec_xd.prepare.past import stable_hash


def promoted_products(journey: Journey, one_in: int, seed: int) -> Table:
    """Products on promotion in a store-week that the household visited, bought or sampled.

    Visits and promotions are hashed to `one_in` residues and unbought products are kept where the residues are equal:
    each pair with probability 1 / `one_in`, without ever forming the other pairs.

    Returns:
        household, store, week, product, day (the week's first), display, mailer, bought (0 or 1), weight (inverse
        sampling rate).
    """
    place, key = ["store", "week"], ["household", "store", "week", "product"]
    bought = journey.purchases.select(key).distinct()
    positives = journey.promotions.join(bought, ["store", "week", "product"]).select(*key, "display", "mailer")
    visits, promotions = journey.visits, journey.promotions
    visits = visits.mutate(residue=stable_hash(visits, ["household", *place], seed) % one_in)
    promotions = promotions.mutate(residue=stable_hash(promotions, ["product", *place], seed + 1) % one_in)
    sampled = promotions.join(visits, [*place, "residue"]).select(*key, "display", "mailer")
    negatives = sampled.anti_join(bought, key)
    rows = ibis.union(
        positives.mutate(bought=ibis.literal(1, "int8"), weight=ibis.literal(1.0, "float32")),
        negatives.mutate(bought=ibis.literal(0, "int8"), weight=ibis.literal(float(one_in), "float32")),
    )
    merged = rows.group_by([*key, "bought", "weight"]).agg(display=_.display.max(), mailer=_.mailer.max())
    return merged.mutate(day=week_day(_.week))


def sent_coupons(journey: Journey) -> Table:
    """Household × campaign it was sent × coupon of that campaign; redeemed in that campaign or not.

    Returns:
        household, campaign, coupon, campaign_type, day (the campaign's first), end_day, redeemed (0 or 1).
    """
    key = ["household", "campaign", "coupon"]
    offers = journey.coupons.select("campaign", "coupon").distinct()
    exposures = journey.mailings.join(offers, "campaign")
    redeemed = journey.redemptions.select(key).distinct().mutate(redeemed=ibis.literal(1, "int8"))
    joined = exposures.left_join(redeemed, key).drop([f"{name}_right" for name in key])
    return joined.mutate(redeemed=_.redeemed.fill_null(0).cast("int8"))
