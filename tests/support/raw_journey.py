"""A tiny raw Complete Journey: the columns and types of the real one, rows that can be counted by hand."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2017, 1, 1)
Rows = list[dict[str, Any]]
Raw = dict[str, Rows]

# Days: valid begins on 190 (Monday, first day of week 29), test on 273 (a Sunday, last day of week 40).
PRODUCTS = [
    # product, manufacturer, department, brand, category, type, size
    (1, 10, "GROCERY", "National", "SOUP", "TOMATO SOUP", "10 OZ"),
    (2, 10, "GROCERY", "Private", "SOUP", "ONION SOUP", None),
    (3, 20, "DRUG GM", "National", "SOAP", "HAND SOAP", "4 OZ"),
    (4, 20, "DRUG GM", "Private", "SOAP", "BAR SOAP", None),
    (5, 30, "GROCERY", "National", None, None, None),
]


def week_of(day: int) -> int:
    """The raw week that a day lies in: weeks begin on Mondays, the first Sunday is week 1 alone."""
    return (day + 13) // 7


def purchase(household: int, product: int, day: int, **other: Any) -> dict[str, Any]:
    """A line of `transactions`, noon in Eastern summer time unless `hour` (UTC) says otherwise."""
    line = {
        "household_id": household,
        "store_id": 1,
        "basket_id": 1000 * day + household,
        "product_id": product,
        "quantity": 1,
        "sales_value": 2.0,
        "retail_disc": 0.0,
        "coupon_disc": 0.0,
        "coupon_match_disc": 0.0,
        "week": week_of(day),
        "transaction_timestamp": START + timedelta(days=day, hours=other.pop("hour", 16)),
    }
    assert not other.keys() - line.keys()
    return line | other


def promotion(product: int, day: int, store: int = 1, display: str = "0", mailer: str = "A") -> dict[str, Any]:
    """A line of `promotions` in the week of a day."""
    keys = {"product_id": product, "store_id": store, "week": week_of(day)}
    return keys | {"display_location": display, "mailer_location": mailer}


def campaign(number: int, kind: str, first: int, last: int) -> dict[str, Any]:
    """A line of `campaign_descriptions`."""
    days = {"start_date": START + timedelta(days=first), "end_date": START + timedelta(days=last)}
    return {"campaign_id": number, "campaign_type": f"Type {kind}"} | days


def redemption(household: int, coupon: int, number: int, day: int) -> dict[str, Any]:
    """A line of `coupon_redemptions`."""
    keys = {"household_id": household, "coupon_upc": coupon, "campaign_id": number}
    return keys | {"redemption_date": START + timedelta(days=day)}


def tiny() -> Raw:
    """Households 1 to 3, products 1 to 5 (and 99, which is not in the catalogue), three campaigns, one per split."""
    names = ("product_id", "manufacturer_id", "department", "brand", "product_category", "product_type", "package_size")
    transactions = [
        purchase(1, 1, 3, quantity=2, sales_value=3.0, retail_disc=1.0),
        purchase(1, 3, 3),
        purchase(1, 99, 3),
        purchase(1, 1, 20, coupon_disc=0.5),
        purchase(1, 2, 20),
        purchase(1, 4, 26),
        purchase(2, 2, 20),
        purchase(2, 5, 40),
        purchase(2, 1, 41, store_id=2),
        purchase(3, 4, 195),
        purchase(1, 2, 196),
        purchase(1, 3, 280),
        purchase(2, 2, 281),
        purchase(3, 1, 300),
    ]
    promotions = [
        *(promotion(product, 20) for product in (1, 2, 3)),
        promotion(4, 26, display="3", mailer="0"),
        promotion(5, 40, display="5"),
        promotion(5, 40, display="2", mailer="D"),
        *(promotion(product, 196, display="9") for product in (2, 3)),
        *(promotion(product, 280) for product in (2, 3)),
        promotion(1, 300, store=2),
    ]
    return {
        "products": [dict(zip(names, row, strict=True)) for row in PRODUCTS],
        "transactions": transactions,
        "promotions": promotions,
        "demographics": [
            demography(1, age="25-34", income="35-49K", kids_count="0"),
            demography(2, age="65+", income="35-49K"),
        ],
        "campaign_descriptions": [campaign(1, "A", 24, 60), campaign(2, "B", 200, 230), campaign(3, "A", 290, 330)],
        "campaigns": [{"campaign_id": c, "household_id": h} for c, h in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 3))],
        "coupons": [
            {"coupon_upc": u, "product_id": p, "campaign_id": c}
            for u, p, c in (
                (501, 1, 1),
                (501, 2, 1),
                (501, 3, 1),
                (501, 3, 1),
                (502, 4, 1),
                (502, 5, 1),
                (501, 1, 2),
                (503, 3, 3),
                (502, 4, 3),
            )
        ],
        "coupon_redemptions": [redemption(1, 501, 1, 30), redemption(1, 501, 2, 210), redemption(3, 503, 3, 295)],
    }


def demography(household: int, **known: str) -> dict[str, Any]:
    """A line of `demographics`; what is not told is null."""
    names = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
    return {"household_id": household} | {name: known.get(name) for name in names}


def write_raw(raw: Raw, folder: Path) -> Path:
    """Write the tables as Parquet files, as the package has them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in raw.items():
        table = pa.Table.from_pylist(rows, schema=pa.schema([(key, _type(key)) for key in rows[0]]))
        pq.write_table(table, folder / f"{name}.parquet", use_deprecated_int96_timestamps=True)
    return folder


def _type(column: str) -> pa.DataType:
    if column.endswith(("_id", "_upc")) or column in ("week", "quantity"):
        return pa.int64()
    if column.endswith(("_date", "_timestamp")):
        return pa.timestamp("us")
    return pa.float64() if column.endswith(("_disc", "_value")) else pa.string()


def varied(seed: int) -> Raw:
    """Twelve households, thirty products and eight campaigns over the whole year, drawn at random."""
    rng = random.Random(seed)
    raw = tiny()
    names, texts = list(raw["products"][0]), ("SOUP", "SOAP", "BREAD", None)
    departments = ("GROCERY", "DRUG GM", "PRODUCE")
    raw["products"] = [
        dict(
            zip(
                names,
                (
                    product,
                    rng.randint(1, 6),
                    rng.choice(departments),
                    rng.choice(("National", "Private")),
                    rng.choice(texts),
                    rng.choice(texts),
                    rng.choice(("4 OZ", "8 OZ", None)),
                ),
                strict=True,
            )
        )
        for product in range(1, 31)
    ]
    raw["transactions"] = [_random_purchase(rng) for _line in range(700)]
    raw["promotions"] = [
        promotion(rng.randint(1, 30), day, rng.randint(1, 2), rng.choice("0359A"), rng.choice("0ADH"))
        for day in range(0, 360, 7)
        for _line in range(18)
    ]
    raw["campaign_descriptions"] = [
        campaign(number, rng.choice("ABC"), 45 * number - 40, 45 * number + rng.randint(-5, 40))
        for number in range(1, 9)
    ]
    raw["campaigns"] = [{"campaign_id": c, "household_id": h} for c in range(1, 9) for h in rng.sample(range(1, 13), 5)]
    raw["coupons"] = [
        {"coupon_upc": 500 + rng.randint(1, 6), "product_id": rng.randint(1, 30), "campaign_id": c}
        for c in range(1, 9)
        for _line in range(20)
    ]
    offered = {(row["coupon_upc"], row["campaign_id"]) for row in raw["coupons"]}
    raw["coupon_redemptions"] = [
        redemption(sent["household_id"], upc, number, 45 * number - 40 + rng.randint(0, 30))
        for sent in raw["campaigns"]
        for upc, number in sorted(offered)
        if number == sent["campaign_id"] and rng.random() < 0.3
    ]
    return raw


def _random_purchase(rng: random.Random) -> dict[str, Any]:
    day = rng.randint(0, 350)
    return purchase(
        rng.randint(1, 12),
        rng.randint(1, 30),
        day,
        store_id=rng.randint(1, 2),
        basket_id=10 * day + rng.randint(0, 1),
        quantity=rng.randint(0, 4),
        sales_value=rng.randint(0, 900) / 100,
        retail_disc=rng.choice((0.0, 0.5, 1.25)),
        coupon_disc=rng.choice((0.0, 0.0, 0.0, 1.0)),
    )
