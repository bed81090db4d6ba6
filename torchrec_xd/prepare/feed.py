"""Rows of a feed: exposures with the household's features, histories and crossings, one layout for every domain."""

from __future__ import annotations

from dataclasses import dataclass

import ibis
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.prepare.buckets import DAYS, bucket, count_bucket
from torchrec_xd.prepare.crossings import (
    ATTRIBUTES,
    DISCOUNT,
    PRICE,
    SHARED,
    Totals,
    cross_attributes,
    cross_product,
    purchase_totals,
)
from torchrec_xd.prepare.dataset import ORDER
from torchrec_xd.prepare.households import USER, household_facts
from torchrec_xd.prepare.journey import DEMOGRAPHICS, Journey
from torchrec_xd.prepare.past import as_of
from torchrec_xd.prepare.vocabulary import Vocabularies, encode, vocabulary

PROMOTED = ("package_size", "display_location", "mailer_location")
"""Features of a product on promotion that `feed_vocabularies` encodes."""
PRODUCT = {
    "price_level": PRICE,
    "discount_depth": DISCOUNT,
    "type_purchases": count_bucket(_.type_count),
    "type_recency": bucket(_.day - _.type_day, DAYS),
}
"""Features of a product that need no vocabulary."""


@dataclass(frozen=True)
class FeedFacts:
    """What all rows of a feed are joined with."""

    journey: Journey
    totals: Totals
    households: Table
    """`household_facts` and histories, at every (household, day) of the exposures."""
    histories: tuple[str, ...]
    """Their columns."""
    vocabularies: Vocabularies


def feed_vocabularies(seen: Journey) -> Vocabularies:
    """Vocabularies that all feeds need.

    Args:
        seen: the journey until the first day of validation.
    """
    bought, promoted = seen.purchases, seen.promotions
    return {
        "household_id": vocabulary(bought, "household"),
        "store": vocabulary(bought, "store"),
        "package_size": vocabulary(bought, "package_size"),
        "display_location": vocabulary(promoted, "display_location"),
        "mailer_location": vocabulary(promoted, "mailer_location"),
        **{name: vocabulary(bought, name) for name in ATTRIBUTES},
        **{name: vocabulary(seen.demographics, name) for name in DEMOGRAPHICS},
    }


def feed_facts(
    journey: Journey, exposures: list[Table], vocabularies: Vocabularies, histories: list[Table]
) -> FeedFacts:
    """Everything that the exposures of a feed are joined with, computed once.

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
        names = [name for name in history.columns if name not in ("household", "day", "until")]
        households = as_of(households, history, ["household"], **{name: name for name in names})
        columns += names
    return FeedFacts(journey, purchase_totals(journey), households.cache(), tuple(columns), vocabularies)


def product_crossings(exposures: Table, facts: FeedFacts) -> Table:
    """`promoted_products` with the products' attributes, all crossings and `PROMOTED`."""
    rows = exposures.join(facts.journey.products, "product")
    rows = cross_attributes(cross_product(rows, facts.totals), facts.totals)
    return encode(rows, facts.vocabularies, **{name: name for name in PROMOTED})


def feed_rows(rows: Table, facts: FeedFacts, label: str, **specific: Value | str) -> Table:
    """The columns that are written, and `ORDER`.

    Args:
        rows: exposures (household, day, weight, label, `ORDER`, `ATTRIBUTES` as codes) with their crossings, and the
            store of the exposure, if it has one; otherwise the household's last store counts.
        facts: of the feed.
        label: column of `rows`.
        specific: the domain's own features.
    """
    rows = rows.join(facts.households, ["household", "day"])
    rows = rows.mutate(store=_.store if "store" in rows.columns else _.last_store)
    rows = encode(rows, facts.vocabularies, store="store", **{name: name for name in ATTRIBUTES})
    known = ["household_id", *DEMOGRAPHICS, *USER, *facts.histories, *ATTRIBUTES, "store"]
    return rows.select(*ORDER, "household", "weight", "activity", label, *known, **SHARED, **specific)
