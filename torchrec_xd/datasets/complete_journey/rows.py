"""Rows of a feed: exposures with the household's features, histories and crossings, one layout for every domain."""

from __future__ import annotations

from dataclasses import dataclass

import ibis
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.datasets.complete_journey.crossings import (
    ATTRIBUTES,
    DISCOUNT,
    PRICE,
    SHARED,
    Totals,
    cross_attributes,
    cross_product,
    purchase_totals,
)
from torchrec_xd.datasets.complete_journey.households import USER, household_facts
from torchrec_xd.datasets.complete_journey.journey import DEMOGRAPHICS, Journey
from torchrec_xd.datasets.pipeline.buckets import DAYS, bucket, count_bucket
from torchrec_xd.datasets.pipeline.dataset import ORDER
from torchrec_xd.datasets.pipeline.past import as_of
from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies, encode, vocabulary

PRODUCT = {
    "price_level": PRICE,
    "discount_depth": DISCOUNT,
    "type_purchases": count_bucket(_.type_count),
    "type_recency": bucket(_.day - _.type_day, DAYS),
}
"""Features of a product that need no vocabulary."""


@dataclass(frozen=True)
class FeedFacts:
    """What the rows of a feed are joined with."""

    totals: Totals
    households: Table
    """`household_facts` and histories, at every (household, day) of the exposures."""
    histories: tuple[str, ...]
    """Their columns."""


def feed_vocabularies(seen: Journey) -> Vocabularies:
    """Vocabularies that all feeds need.

    Args:
        seen: the journey until the first day of validation.
    """
    bought, promoted = seen.purchases, seen.promotions
    return {
        "household_id": vocabulary(bought, "household"),
        "store_id": vocabulary(bought, "store"),
        "package_size": vocabulary(bought, "size_code"),
        "display_location": vocabulary(promoted, "display_location"),
        "mailer_location": vocabulary(promoted, "mailer_location"),
        **{name: vocabulary(bought, f"{name}_code") for name in ATTRIBUTES},
        **{name: vocabulary(seen.demographics, name) for name in DEMOGRAPHICS},
    }


def feed_facts(
    journey: Journey, exposures: list[Table], vocabularies: Vocabularies, histories: list[Table]
) -> FeedFacts:
    """Everything that the rows of a feed are joined with, computed once.

    Args:
        journey: whose events count.
        exposures: of all domains (household, day).
        vocabularies: of the feed.
        histories: lists per household, from `latest`.
    """
    moments = ibis.union(*(rows.select("household", "day").distinct() for rows in exposures), distinct=True)
    households = household_facts(journey, moments, vocabularies)
    columns: list[str] = []
    for history in histories:
        lists = [f"hist_{name}" for name in history.columns if name not in ("household", "day", "until")]
        joined = as_of(households, history, ["household"], "hist")
        households = joined.select(*households.columns, *lists)
        columns += lists
    return FeedFacts(purchase_totals(journey), households.cache(), tuple(columns))


def promoted_at(exposures: Table, vocabularies: Vocabularies) -> Table:
    """`promoted_products` with the vocabulary rows of store, display and mailer."""
    names = {"display_location": "display_location", "mailer_location": "mailer_location"}
    return encode(exposures, vocabularies, store_id="store", **names)


def catalogue(journey: Journey, vocabularies: Vocabularies, **own: str) -> Table:
    """The products with the vocabulary rows of `ATTRIBUTES`, package_size and a feed's own columns, as in `encode`."""
    names = {name: f"{name}_code" for name in ATTRIBUTES}
    return encode(journey.products, vocabularies, package_size="size_code", **names, **own).cache()


def product_rows(exposures: Table, products: Table, facts: FeedFacts) -> Table:
    """`promoted_at` with the `catalogue` and all crossings."""
    rows = exposures.join(products, "product")
    return cross_attributes(cross_product(rows, facts.totals), facts.totals)


def feed_rows(rows: Table, facts: FeedFacts, label: str, **specific: Value | str) -> Table:
    """The columns that are written, and `ORDER`.

    Args:
        rows: exposures (household, day, weight, label, `ORDER`, `ATTRIBUTES`) with their crossings; without a store_id,
            that of the household's last purchase counts.
        facts: of the feed.
        label: column of `rows`.
        specific: the domain's own features.
    """
    rows = rows.join(facts.households, ["household", "day"], rname="last_{name}")
    known = ["household_id", *DEMOGRAPHICS, *USER, *facts.histories, *ATTRIBUTES]
    rows = rows.mutate(weight=_.weight.cast("float32"), **{label: _[label].cast("int8")})
    columns = [*ORDER, "household", "weight", "activity", label, *known]
    return rows.select(*columns, store=_.store_id, **SHARED, **specific)
