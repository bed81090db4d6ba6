"""Crossing features: what the household bought before of what it is shown, and of its category or manufacturer."""

from __future__ import annotations

from dataclasses import dataclass

from ibis import _
from ibis.expr.types import Table

from torchrec_xd.datasets.complete_journey.journey import Journey
from torchrec_xd.datasets.pipeline.buckets import (
    CENTS,
    DAYS,
    LARGE_COUNTS,
    NEVER_DAYS,
    PERCENTS,
    bucket,
    count_bucket,
    log1p,
)
from torchrec_xd.datasets.pipeline.past import as_of, running

ATTRIBUTES = ("category", "manufacturer", "department", "brand")
"""What a product and a coupon have in common; a coupon has those of most of the products that it covers. Purchases are
matched by the catalogue's code (`category_code`), models read the row of the vocabulary (`category`)."""
CODES = tuple(f"{name}_code" for name in ATTRIBUTES)

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
    coupons, sales = _.with_coupon.sum(), {"cents": _.cents.sum(), "full_cents": _.full_cents.sum()}
    return Totals(
        item=running(bought, ["household", "product"], count=count, pieces=pieces).cache(),
        product_type=running(bought, ["household", "type_code"], count=count).cache(),
        category=running(
            bought, ["household", "category_code"], count=count, pieces=pieces, with_coupon=coupons
        ).cache(),
        manufacturer=running(bought, ["household", "manufacturer_code"], count=count).cache(),
        department=running(bought, ["household", "department_code"], count=count).cache(),
        product=running(bought, ["product"], count=count, pieces=pieces, **sales).cache(),
    )


def cross_attributes(rows: Table, totals: Totals) -> Table:
    """`rows` (household, day, `CODES`) with what the household bought of these."""
    for name in ("category", "manufacturer", "department"):
        facts: Table = getattr(totals, name)
        rows = as_of(rows, facts, ["household", f"{name}_code"], name)
    return rows


def cross_product(rows: Table, totals: Totals) -> Table:
    """`rows` (household, day, product, type_code) with what the household bought of these, and how the product sold."""
    rows = as_of(rows, totals.item, ["household", "product"], "item")
    rows = as_of(rows, totals.product_type, ["household", "type_code"], "type")
    return as_of(rows, totals.product, ["product"], "sold")
