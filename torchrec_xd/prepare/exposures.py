"""Exposures with their labels: products on promotion where a household shopped, and coupons sent to it."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.hashing import stable_hash
from torchrec_xd.prepare.journey import Journey, week_day

VISIT_KEY = ["household", "store", "week"]
PRODUCT_KEY = [*VISIT_KEY, "product"]
COUPON_KEY = ["household", "campaign", "coupon"]
_PLACES = ["display_location", "mailer_location"]


def promoted_products(journey: Journey, one_in: int, seed: int) -> Table:
    """Products on promotion in a store-week that the household visited, bought or sampled.

    Visits and promotions are hashed to `one_in` residues, and unbought products are kept where both have the same one:
    each pair with probability 1 / `one_in`, without ever forming the other pairs.

    Returns:
        `PRODUCT_KEY`, day (the week's first), display_location, mailer_location, bought (0 or 1), weight (inverse
        sampling rate).
    """
    bought = journey.purchases.select(PRODUCT_KEY).distinct()
    positives = journey.promotions.join(bought, ["store", "week", "product"]).select(*PRODUCT_KEY, *_PLACES)
    place = ["store", "week"]
    visits, promotions = journey.visits, journey.promotions
    visits = visits.mutate(residue=stable_hash(visits, ["household", *place], seed) % one_in)
    promotions = promotions.mutate(residue=stable_hash(promotions, ["product", *place], seed + 1) % one_in)
    sampled = promotions.join(visits, [*place, "residue"]).select(*PRODUCT_KEY, *_PLACES)
    negatives = sampled.anti_join(bought, PRODUCT_KEY)
    rows = ibis.union(
        positives.mutate(bought=ibis.literal(1, "int64"), weight=ibis.literal(1, "int64")),
        negatives.mutate(bought=ibis.literal(0, "int64"), weight=ibis.literal(one_in, "int64")),
    )
    # Some promotions are listed twice with different places: the later letter or number counts, '0' (none) least.
    places = {name: _[name].max() for name in _PLACES}
    return rows.group_by([*PRODUCT_KEY, "bought", "weight"]).agg(**places).mutate(day=week_day(_.week))


def sent_coupons(journey: Journey) -> Table:
    """Household x campaign that it was sent x coupon of the campaign; redeemed during the campaign or not.

    Returns:
        `COUPON_KEY`, campaign_type, day (the campaign's first), end_day, redeemed (0 or 1), weight (1).
    """
    exposures = journey.mailings.join(journey.coupons.select("campaign", "coupon").distinct(), "campaign")
    redeemed = journey.redemptions.select(COUPON_KEY).distinct().mutate(redeemed=ibis.literal(1, "int64"))
    labelled = exposures.left_join(redeemed, COUPON_KEY).drop(*(f"{name}_right" for name in COUPON_KEY))
    return labelled.mutate(redeemed=_.redeemed.fill_null(0), weight=ibis.literal(1, "int64"))
