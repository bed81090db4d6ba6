"""The features of `cj_feed` by loops over the raw rows that were strictly before: an independent reference."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from datetime import timedelta
from math import log1p
from typing import Any

from tests.support.raw_journey import START, Raw

COUNTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
LARGE = [*COUNTS, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768]
CENTS = [*LARGE, 49152, 65536]
DAYS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 22, 29, 43, 57, 85, 113, 169, 225, 337]
PERCENTS = [1, 3, 5, 8, 10, 13, 15, 18, 20, 25, 30, 35, 40, 50, 60]
VALID_DAY = 190
Row = dict[str, Any]


def bucket(value: int | None, edges: list[int]) -> int:
    return 0 if value is None else 1 + bisect_right(edges, value)


def ranked(values: list[Any]) -> dict[Any, int]:
    """Vocabulary: most frequent first, ties by value."""
    counts = Counter(value for value in values if value is not None)
    return {value: place + 1 for place, value in enumerate(sorted(counts, key=lambda v: (-counts[v], v)))}


def cents(amount: float) -> int:
    return round(amount * 100)


def most(values: list[Any]) -> Any:
    counts = Counter(value for value in values if value is not None)
    return min(counts, key=lambda v: (-counts[v], v), default=None)


class Naive:
    """Features of one exposure at a time."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.product_of = {row["product_id"]: row for row in raw["products"]}
        self.bought = [self._line(row) for row in raw["transactions"] if row["product_id"] in self.product_of]
        self.starts = {row["campaign_id"]: (row["start_date"] - START).days for row in raw["campaign_descriptions"]}
        self.types = {
            row["campaign_id"]: "_ABC".index(row["campaign_type"][-1]) for row in raw["campaign_descriptions"]
        }
        self.redeemed = [row | {"day": (row["redemption_date"] - START).days} for row in raw["coupon_redemptions"]]
        seen = [line for line in self.bought if line["day"] < VALID_DAY]
        offers = {(row["campaign_id"], row["coupon_upc"]) for row in raw["coupons"]}
        self.vocabulary = {
            name: ranked([line[name] for line in seen])
            for name in (
                "product_id",
                "product_category",
                "manufacturer_id",
                "department",
                "brand",
                "store_id",
                "household_id",
            )
        }
        self.vocabulary["coupon_upc"] = ranked(
            [
                upc
                for sent in raw["campaigns"]
                for number, upc in offers
                if number == sent["campaign_id"] and self.starts[number] < VALID_DAY
            ]
        )

    def _line(self, row: Row) -> Row:
        day = (row["transaction_timestamp"] - timedelta(hours=4) - START).days
        return {**row, **self.product_of[row["product_id"]], "day": day}

    def row(self, name: str, value: Any) -> int:
        return self.vocabulary[name].get(value, 0)

    def household(self, household: int, day: int) -> Row:
        own = [line for line in self.bought if line["household_id"] == household and line["day"] < day]
        recent = [line for line in own if line["day"] >= day - 30]
        redeemed = [row for row in self.redeemed if row["household_id"] == household and row["day"] < day]
        sent = [row for row in self.raw["campaigns"] if row["household_id"] == household]
        campaigns = sum(self.starts[row["campaign_id"]] < day for row in sent)
        last = max((line["day"] for line in own), default=None)
        entries = sorted({(line["day"], line["product_id"]) for line in own})[-30:]
        coupons = sorted((row["day"], row["coupon_upc"], row["campaign_id"]) for row in redeemed)[-10:]
        discounted = sum(line["retail_disc"] > 0 for line in own)
        return {
            "household_id": self.row("household_id", household),
            "activity": len({(line["basket_id"], line["day"]) for line in recent}),
            "purchases_30d": bucket(len(recent), LARGE),
            "trips_30d": bucket(len({(line["basket_id"], line["day"]) for line in recent}), COUNTS),
            "spend_30d": bucket(sum(cents(line["sales_value"]) for line in recent), CENTS),
            "days_since_trip": bucket(None if last is None else day - last, DAYS),
            "discounted_share": bucket(discounted * 100 // len(own) if own else None, PERCENTS),
            "coupon_purchases": bucket(sum(line["coupon_disc"] > 0 for line in own), COUNTS),
            "redemptions": bucket(len(redeemed), COUNTS),
            "days_since_redemption": bucket(day - max(row["day"] for row in redeemed) if redeemed else None, DAYS),
            "campaigns": bucket(campaigns, COUNTS),
            "campaigns_log": log1p(campaigns),
            "hist_product": [self.row("product_id", product) for _day, product in entries] or None,
            "hist_category": [
                self.row("product_category", self.product_of[product]["product_category"]) for _day, product in entries
            ]
            or None,
            "hist_coupon": [self.row("coupon_upc", upc) for _day, upc, _campaign in coupons] or None,
        }

    def crossings(self, household: int, day: int, shown: Row, products: list[int]) -> Row:
        """Features of the household and what it is shown; `products` make the item."""
        before = [line for line in self.bought if line["day"] < day]
        own = [line for line in before if line["household_id"] == household]
        item = [line for line in own if line["product_id"] in products]
        features = {
            **_bought("item", item, day, COUNTS),
            "item_quantity": bucket(sum(line["quantity"] for line in item), COUNTS),
            "item_popularity_log": log1p(sum(line["product_id"] in products for line in before)),
            "brand": self.row("brand", shown["brand"]),
        }
        for name, column in (
            ("category", "product_category"),
            ("manufacturer", "manufacturer_id"),
            ("department", "department"),
        ):
            value = shown[column]
            lines = [line for line in own if line[column] == value and value is not None]
            features |= _bought(name, lines, day, LARGE if name == "department" else COUNTS)
            features[name] = self.row(column, value)
            if name == "category":
                features["category_quantity"] = bucket(sum(line["quantity"] for line in lines), COUNTS)
                features["category_coupons"] = bucket(sum(line["coupon_disc"] > 0 for line in lines), COUNTS)
        return features

    def prices(self, day: int, products: list[int]) -> tuple[int, int]:
        """Buckets of mean price and discount before a day."""
        sold = [line for line in self.bought if line["day"] < day and line["product_id"] in products]
        pieces = sum(line["quantity"] for line in sold)
        full = sum(cents(line["sales_value"] + line["retail_disc"]) for line in sold)
        paid = sum(cents(line["sales_value"]) for line in sold)
        return (
            bucket(full // pieces if pieces else None, CENTS),
            bucket((full - paid) * 100 // full if full else None, PERCENTS),
        )

    def product(self, household: int, store: int, week: int, product: int) -> Row:
        day, shown = 7 * week - 13, self.product_of[product]
        kind = shown["product_type"]
        lines = [
            line
            for line in self.bought
            if line["household_id"] == household
            and line["day"] < day
            and line["product_type"] == kind
            and kind is not None
        ]
        price, discount = self.prices(day, [product])
        kinds = _bought("type", lines, day, COUNTS)
        return {
            **self.household(household, day),
            **self.crossings(household, day, shown, [product]),
            "product_id": self.row("product_id", product),
            "store": self.row("store_id", store),
            "price_level": price,
            "discount_depth": discount,
            "type_purchases": kinds["type_purchases"],
            "type_recency": kinds["type_recency"],
        }

    def coupon(self, household: int, campaign: int, coupon: int) -> Row:
        day, covered = self.starts[campaign], self._covered(campaign, coupon)
        columns = ("product_category", "manufacturer_id", "department", "brand")
        shown = {column: most([self.product_of[product][column] for product in covered]) for column in columns}
        price, discount = self.prices(day, covered)
        before = [row for row in self.redeemed if row["day"] < day]
        own = [row for row in before if row["household_id"] == household]
        kind = self.types[campaign]
        sent = [row["campaign_id"] for row in self.raw["campaigns"] if row["household_id"] == household]
        return {
            **self.household(household, day),
            **self.crossings(household, day, shown, covered),
            "coupon_upc": self.row("coupon_upc", coupon),
            "campaign_type": kind,
            "covered_products": bucket(len(covered), LARGE),
            "covered_bought": bucket(len(self._bought_of(household, day, covered)), COUNTS),
            "covered_rank": bucket(self._rank(household, campaign, coupon), LARGE),
            "covered_price": price,
            "covered_discount": discount,
            "coupon_redemptions": bucket(sum(row["coupon_upc"] == coupon for row in before), COUNTS),
            "own_redemptions": bucket(sum(row["coupon_upc"] == coupon for row in own), COUNTS),
            "type_redemptions": bucket(sum(self.types[row["campaign_id"]] == kind for row in own), COUNTS),
            "type_campaigns": bucket(sum(self.types[c] == kind and self.starts[c] < day for c in sent), COUNTS),
        }

    def _covered(self, campaign: int, coupon: int) -> list[int]:
        rows = self.raw["coupons"]
        return sorted({r["product_id"] for r in rows if r["campaign_id"] == campaign and r["coupon_upc"] == coupon})

    def _bought_of(self, household: int, day: int, products: list[int]) -> Counter[int]:
        own = [line for line in self.bought if line["household_id"] == household and line["day"] < day]
        return Counter(line["product_id"] for line in own if line["product_id"] in products)

    def _rank(self, household: int, campaign: int, coupon: int) -> int | None:
        day = self.starts[campaign]
        coupons = {row["coupon_upc"] for row in self.raw["coupons"] if row["campaign_id"] == campaign}
        counts = {c: self._bought_of(household, day, self._covered(campaign, c)).total() for c in coupons}
        return 1 + sum(count > counts[coupon] for count in counts.values()) if counts[coupon] else None


def _bought(name: str, lines: list[Row], day: int, edges: list[int]) -> Row:
    recency = day - max(line["day"] for line in lines) if lines else None
    return {
        f"{name}_purchases": bucket(len(lines), edges),
        f"{name}_purchases_log": log1p(len(lines)),
        f"{name}_recency": bucket(recency, DAYS),
    }
