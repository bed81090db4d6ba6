"""What a coupon covers: attributes of most of its products, how those sold, and what the household bought of them."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.datasets.complete_journey.crossings import CODES, Totals
from torchrec_xd.datasets.complete_journey.journey import Journey
from torchrec_xd.datasets.pipeline.past import as_of

OFFER = ["campaign", "coupon"]


def offers(journey: Journey, totals: Totals) -> Table:
    """Every coupon of every campaign.

    Returns:
        campaign, coupon, covered (number of products), `CODES` of most of them (ties: the smaller code), sold_count,
        sold_pieces, sold_cents and sold_full_cents of them all before the campaign.
    """
    products = journey.coupons.join(journey.products, "product")
    offered = products.group_by(OFFER).agg(covered=_.count())
    for code in CODES:
        offered = offered.left_join(_dominant(products, code), OFFER, rname=f"{code}_{{name}}")
    starts = journey.mailings.select("campaign", "day").distinct()
    sales = as_of(journey.coupons.join(starts, "campaign"), totals.product, ["product"], "sold")
    sums = {f"sold_{name}": _[f"sold_{name}"].sum() for name in ("count", "pieces", "cents", "full_cents")}
    return offered.select(*OFFER, "covered", *CODES).join(sales.group_by(OFFER).agg(**sums), OFFER)


def _dominant(products: Table, code: str) -> Table:
    known = products.filter(products[code].notnull())
    counts = known.group_by([*OFFER, code]).agg(times=_.count())
    place = ibis.row_number().over(group_by=OFFER, order_by=[counts.times.desc(), counts[code]])
    return counts.mutate(place=place).filter(_.place == 0).select(*OFFER, code)


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
