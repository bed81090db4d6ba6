"""Crossing features: what the household bought before of what it is shown, and of its category or manufacturer."""

from __future__ import annotations

from dataclasses import dataclass

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.prepare.buckets import (
    CENTS,
    DAYS,
    LARGE_COUNTS,
    NEVER_DAYS,
    PERCENTS,
    bucket,
    count_bucket,
    log1p,
)
from torchrec_xd.prepare.journey import Journey
from torchrec_xd.prepare.past import as_of, running

ATTRIBUTES = ("category", "manufacturer", "department", "brand")
"""What a product and a coupon have in common; a coupon has those of most of the products that it covers."""

SHARED = {
    "item_purchases": count_bucket(_.item_count),
    "item_quantity": count_bucket(_.item_pieces),
    "item_recency": bucket(_.day - _.item_day, DAYS),
    "item_popularity": count_bucket(_.sold_count, LARGE_COUNTS),
    "category_purchases": count_bucket(_.category_count),
    "category_quantity": count_bucket(_.category_pieces),
    "category_recency": bucket(_.day - _.category_day, DAYS),
    "category_coupons": count_bucket(_.category_with_coupon),
    "manufacturer_purchases": count_bucket(_.manufacturer_count),
    "manufacturer_recency": bucket(_.day - _.manufacturer_day, DAYS),
    "department_purchases": count_bucket(_.department_count, LARGE_COUNTS),
    "department_recency": bucket(_.day - _.department_day, DAYS),
    "item_purchases_log": log1p(_.item_count),
    "item_quantity_log": log1p(_.item_pieces),
    "item_recency_log": log1p((_.day - _.item_day).fill_null(NEVER_DAYS)),
    "item_popularity_log": log1p(_.sold_count),
    "category_purchases_log": log1p(_.category_count),
    "category_recency_log": log1p((_.day - _.category_day).fill_null(NEVER_DAYS)),
    "manufacturer_purchases_log": log1p(_.manufacturer_count),
    "department_purchases_log": log1p(_.department_count),
}
"""Features of the group `shared` that need no vocabulary; the *item* is the product, or all products of the coupon."""

PRICE = bucket(_.sold_full_cents // _.sold_pieces.nullif(0), CENTS)
"""Mean price per piece before discounts, in purchases before the day."""
DISCOUNT = bucket((_.sold_full_cents - _.sold_cents) * 100 // _.sold_full_cents.nullif(0), PERCENTS)
"""Mean discount in percent, in purchases before the day."""
SALES = {"sold_count": "count", "sold_pieces": "pieces", "sold_cents": "cents", "sold_full_cents": "full_cents"}
"""How a product sold: new column = column of `Totals.product`."""


@dataclass(frozen=True)
class Totals:
    """Running totals of purchases, computed once: per household and key, and per product over all households."""

    item: Table
    product_type: Table
    category: Table
    manufacturer: Table
    department: Table
    product: Table


def purchase_totals(journey: Journey) -> Totals:
    """The running totals of the journey's purchases."""
    bought, count, pieces = journey.purchases, _.count(), _.quantity.sum()
    return Totals(
        item=running(bought, ["household", "product"], count=count, pieces=pieces).cache(),
        product_type=running(bought, ["household", "product_type"], count=count).cache(),
        category=running(
            bought, ["household", "category"], count=count, pieces=pieces, with_coupon=_.with_coupon.sum()
        ).cache(),
        manufacturer=running(bought, ["household", "manufacturer"], count=count).cache(),
        department=running(bought, ["household", "department"], count=count).cache(),
        product=running(
            bought, ["product"], count=count, pieces=pieces, cents=_.cents.sum(), full_cents=_.full_cents.sum()
        ).cache(),
    )


def cross_attributes(rows: Table, totals: Totals) -> Table:
    """`rows` (household, day, `ATTRIBUTES`) with what the household bought of these."""
    rows = as_of(
        rows,
        totals.category,
        ["household", "category"],
        category_count="count",
        category_pieces="pieces",
        category_with_coupon="with_coupon",
        category_day="day",
    )
    for name in ("manufacturer", "department"):
        facts: Table = getattr(totals, name)
        rows = as_of(rows, facts, ["household", name], **{f"{name}_count": "count", f"{name}_day": "day"})
    return rows


def cross_product(rows: Table, totals: Totals) -> Table:
    """`rows` (household, day, product, product_type) with what the household bought of these, and `SALES`."""
    rows = as_of(rows, totals.item, ["household", "product"], item_count="count", item_pieces="pieces", item_day="day")
    rows = as_of(rows, totals.product_type, ["household", "product_type"], type_count="count", type_day="day")
    return as_of(rows, totals.product, ["product"], **SALES)
