"""Exposures with their labels: products offered where a household shopped, and coupons sent to it."""

from __future__ import annotations

from collections.abc import Mapping

import ibis
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.datasets.complete_journey.journey import Journey, week_day
from torchrec_xd.prepare.hashing import stable_hash

VISIT_KEY = ["household", "store", "week"]
PRODUCT_KEY = [*VISIT_KEY, "product"]
COUPON_KEY = ["household", "campaign", "coupon"]
_PLACES = ["display_location", "mailer_location"]


def promoted_products(journey: Journey, one_in: int, seed: int, kept: Table | None = None) -> Table:
    """Products on promotion in a store-week that the household visited, bought or sampled.

    Args:
        journey: the events.
        one_in: unbought products are sampled at this rate.
        seed: of the sample.
        kept: `PRODUCT_KEY` of unbought products that are all kept, besides the sample of the others.

    Returns:
        `PRODUCT_KEY`, day (the week's first), display_location, mailer_location, bought (0 or 1), weight (inverse
        sampling rate).
    """
    # Some promotions are listed twice with different places: the later letter or number counts, '0' (none) least.
    return _offered(journey, journey.promotions, one_in, seed, kept, {name: _[name].max() for name in _PLACES})


def shelf_products(journey: Journey, one_in: int, seed: int) -> Table:
    """Products off promotion in a store-week that the household visited, bought or sampled.

    That a product lay on the shelf is known from its being sold in that store-week, to anybody.

    Returns:
        `PRODUCT_KEY`, day (the week's first), bought (0 or 1), weight (inverse sampling rate).
    """
    shelf = unpromoted_purchases(journey).select("store", "week", "product").distinct()
    return _offered(journey, shelf, one_in, seed, None, {})


def unpromoted_purchases(journey: Journey) -> Table:
    """`journey.purchases` of products that were not on promotion in that store-week."""
    return journey.purchases.anti_join(journey.promotions, ["store", "week", "product"])


def _offered(
    journey: Journey, offers: Table, one_in: int, seed: int, kept: Table | None, places: Mapping[str, Value]
) -> Table:
    """Bought offers (store, week, product, places), those `kept`, and of the other pairs (visit, offer) a sample.

    Visits and offers are hashed to `one_in` residues, and unbought offers are sampled where both have the same one:
    each pair with probability 1 / `one_in`, without ever forming the other pairs.
    """
    bought = journey.purchases.select(PRODUCT_KEY).distinct()
    positives = offers.join(bought, ["store", "week", "product"]).select(*PRODUCT_KEY, *places)
    place = ["store", "week"]
    visits = journey.visits
    visits = visits.mutate(residue=stable_hash(visits, ["household", *place], seed) % one_in)
    hashed = offers.mutate(residue=stable_hash(offers, ["product", *place], seed + 1) % one_in)
    sampled = hashed.join(visits, [*place, "residue"]).select(*PRODUCT_KEY, *places).anti_join(bought, PRODUCT_KEY)
    parts = [_marked(positives, bought=1, weight=1)]
    if kept is not None:
        sampled = sampled.anti_join(kept, PRODUCT_KEY)
        unbought = offers.join(kept, ["store", "week", "product"]).select(*PRODUCT_KEY, *places)
        parts.append(_marked(unbought.anti_join(bought, PRODUCT_KEY), bought=0, weight=1))
    rows = ibis.union(*parts, _marked(sampled, bought=0, weight=one_in))
    return rows.group_by([*PRODUCT_KEY, "bought", "weight"]).agg(**places).mutate(day=week_day(_.week))


def _marked(rows: Table, **numbers: int) -> Table:
    return rows.mutate(**{name: ibis.literal(number, "int64") for name, number in numbers.items()})


def sent_coupons(journey: Journey) -> Table:
    """Household x campaign that it was sent x coupon of the campaign; redeemed during the campaign or not.

    Returns:
        `COUPON_KEY`, campaign_type, day (the campaign's first), end_day, redeemed (0 or 1), weight (1).
    """
    exposures = journey.mailings.join(journey.coupons.select("campaign", "coupon").distinct(), "campaign")
    redeemed = journey.redemptions.select(COUPON_KEY).distinct().mutate(redeemed=ibis.literal(1, "int64"))
    labelled = exposures.left_join(redeemed, COUPON_KEY).drop(*(f"{name}_right" for name in COUPON_KEY))
    return labelled.mutate(redeemed=_.redeemed.fill_null(0), weight=ibis.literal(1, "int64"))
