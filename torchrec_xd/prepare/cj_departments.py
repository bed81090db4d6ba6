"""`cj_departments`: products on promotion in the department GROCERY (source) and in DRUG GM (target), for MKT.

A fifth of the households is *cold*, without history in the target: their target rows are not in the training split, and
their target purchases count for labels alone.
"""

from __future__ import annotations

from dataclasses import replace

from ibis import _
from ibis.expr.types import BooleanValue, Table

from torchrec_xd.prepare.cj_feed import PRODUCT_HISTORY, SPLIT
from torchrec_xd.prepare.dataset import DataSet, DomainRows
from torchrec_xd.prepare.engine import PrepareSettings
from torchrec_xd.prepare.exposures import PRODUCT_KEY, VISIT_KEY, promoted_products
from torchrec_xd.prepare.feed import (
    PRODUCT,
    PROMOTED,
    FeedFacts,
    feed_facts,
    feed_rows,
    feed_vocabularies,
    product_crossings,
)
from torchrec_xd.prepare.hashing import stable_hash
from torchrec_xd.prepare.journey import Journey
from torchrec_xd.prepare.past import latest
from torchrec_xd.prepare.vocabulary import Vocabularies, encode, vocabulary

SOURCE, TARGET = "grocery", "drug_gm"
DEPARTMENTS = {SOURCE: "GROCERY", TARGET: "DRUG GM"}
COLD_ONE_IN = 5
COMMON = ("display_location", "mailer_location")
"""Features of a product on promotion that both departments have."""
SPECIFIC = {SOURCE: ("package_size", "type_recency"), TARGET: ("price_level", "discount_depth", "type_purchases")}
"""Those that one department has, beside the product and its type."""


def build(journey: Journey, settings: PrepareSettings) -> DataSet:
    """The data set's domains `grocery` and `drug_gm`."""
    exposures = _exposures(journey, settings).cache()
    hidden = (_.department_name == DEPARTMENTS[TARGET]) & is_cold(journey.purchases, settings.seed)
    known = replace(journey, purchases=journey.purchases.filter(~hidden).cache())
    vocabularies = _vocabularies(known.until(SPLIT.valid))
    histories = [_history(name, known, vocabularies) for name in DEPARTMENTS]
    facts = feed_facts(known, [exposures], vocabularies, histories)
    untrained = (_.department_name == DEPARTMENTS[TARGET]) & (_.cold == 1) & (_.split == "train")
    count = int(exposures.filter(untrained).count().execute())
    return DataSet(
        domains={name: _domain(name, exposures.filter(~untrained), facts) for name in DEPARTMENTS},
        vocabularies=vocabularies,
        sampling={"products on promotion that were not bought": 1 / settings.negatives},
        notes=(
            f"one in {COLD_ONE_IN} households is cold: {count} of their rows in {TARGET} before validation are left "
            "out, and their purchases there count for labels alone",
        ),
    )


def is_cold(table: Table, seed: int) -> BooleanValue:
    """Whether the household of a row is cold: one in `COLD_ONE_IN`, by hash."""
    return stable_hash(table, ["household"], seed) % COLD_ONE_IN == 0


def _exposures(journey: Journey, settings: PrepareSettings) -> Table:
    departments = journey.products.select("product", "department_name")
    departments = departments.filter(_.department_name.isin(list(DEPARTMENTS.values())))
    rows = promoted_products(journey, settings.negatives, settings.seed).join(departments, "product")
    return SPLIT.mark(rows.mutate(cold=is_cold(rows, settings.seed).cast("int8")))


def _vocabularies(seen: Journey) -> Vocabularies:
    found = feed_vocabularies(seen)
    for name, department in DEPARTMENTS.items():
        bought = seen.purchases.filter(_.department_name == department)
        found[f"{name}_product"] = vocabulary(bought, "product")
        found[f"{name}_type"] = vocabulary(bought, "product_type")
    return found


def _history(name: str, journey: Journey, vocabularies: Vocabularies) -> Table:
    bought = journey.purchases.filter(_.department_name == DEPARTMENTS[name])
    bought = encode(
        bought.select("household", "day", "product").distinct(), vocabularies, **{f"{name}_product": "product"}
    )
    return latest(bought, ["household"], ["product"], PRODUCT_HISTORY, **{f"hist_{name}": f"{name}_product"})


def _domain(name: str, exposures: Table, facts: FeedFacts) -> DomainRows:
    return DomainRows(
        exposures=exposures.filter(_.department_name == DEPARTMENTS[name]).drop("department_name"),
        label="bought",
        key=PRODUCT_KEY,
        cluster=VISIT_KEY,
        features=lambda rows: _rows(name, rows, facts),
    )


def _rows(name: str, exposures: Table, facts: FeedFacts) -> Table:
    rows = product_crossings(exposures, facts)
    own = {f"{name}_product": "product", f"{name}_type": "product_type"}
    rows = encode(rows, facts.vocabularies, **own)
    columns = {feature: feature for feature in ("cold", *own, *COMMON)}
    specific = {feature: feature if feature in PROMOTED else PRODUCT[feature] for feature in SPECIFIC[name]}
    return feed_rows(rows, facts, "bought", **columns, **specific)
