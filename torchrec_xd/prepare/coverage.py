"""What a coupon covers: attributes of most of its products, how those sold, and what the household bought of them."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.crossings import ATTRIBUTES, SALES, Totals
from torchrec_xd.prepare.journey import Journey
from torchrec_xd.prepare.past import as_of

OFFER = ["campaign", "coupon"]


def offers(journey: Journey, totals: Totals) -> Table:
    """Every coupon of every campaign.

    Returns:
        campaign, coupon, covered (number of products), `ATTRIBUTES` of most of them (ties: the smaller code), `SALES`
        of them all before the campaign.
    """
    products = journey.coupons.join(journey.products, "product")
    offered = products.group_by(OFFER).agg(covered=_.count())
    for name in ATTRIBUTES:
        offered = offered.left_join(_dominant(products, name), OFFER).drop(*(f"{key}_right" for key in OFFER))
    starts = journey.mailings.select("campaign", "day").distinct()
    sales = as_of(journey.coupons.join(starts, "campaign"), totals.product, ["product"], **SALES)
    return offered.join(sales.group_by(OFFER).agg(**{name: _[name].sum() for name in SALES}), OFFER)


def _dominant(products: Table, attribute: str) -> Table:
    known = products.filter(products[attribute].notnull())
    counts = known.group_by([*OFFER, attribute]).agg(times=_.count())
    order = [counts.times.desc(), counts[attribute]]
    place = ibis.row_number().over(group_by=OFFER, order_by=order)
    return counts.mutate(place=place).filter(_.place == 0).select(*OFFER, attribute)


def covered_purchases(journey: Journey) -> Table:
    """Household x campaign x coupon with what the household bought of the covered products before the campaign.

    Returns:
        household, campaign, coupon, item_count, item_pieces, item_day (the last one's), covered_bought (how many of
        the products), covered_rank (place of the coupon among those of the campaign by `item_count`, from 1; equals
        share the best place); only where something was bought.
    """
    days = journey.purchases.group_by(["household", "product", "day"]).agg(count=_.count(), pieces=_.quantity.sum())
    sent = journey.mailings.select("household", "campaign", start="day")
    before = days.join(sent, [days.household == sent.household, days.day < sent.start]).drop("household_right")
    bought = before.group_by(["household", "campaign", "product"]).agg(
        count=_["count"].sum(), pieces=_.pieces.sum(), day=_.day.max()
    )
    covered = bought.join(journey.coupons, ["campaign", "product"])
    facts = covered.group_by(["household", *OFFER]).agg(
        item_count=_["count"].sum(), item_pieces=_.pieces.sum(), item_day=_.day.max(), covered_bought=_.count()
    )
    within = ibis.window(group_by=["household", "campaign"], order_by=facts.item_count.desc())
    return facts.mutate(covered_rank=ibis.rank().over(within) + 1)
