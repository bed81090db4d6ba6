"""`cj_departments`: products on promotion in the department GROCERY (source) and in DRUG GM (target), for MKT.

A fifth of the households is *cold*, without history in the target: their target rows are not in the training split, and
their target purchases count for labels alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ibis import _
from ibis.expr.types import BooleanValue, Table, Value

from torchrec_xd.datasets.complete_journey.exposures import PRODUCT_KEY, VISIT_KEY, promoted_products
from torchrec_xd.datasets.complete_journey.feed import NEGATIVES, PRODUCT_HISTORY, SPLIT
from torchrec_xd.datasets.complete_journey.journey import Journey
from torchrec_xd.datasets.complete_journey.rows import (
    PRODUCT,
    FeedFacts,
    catalogue,
    feed_facts,
    feed_rows,
    feed_vocabularies,
    product_rows,
    promoted_at,
)
from torchrec_xd.datasets.complete_journey.settings import PrepareSettings
from torchrec_xd.datasets.pipeline.dataset import DataSet, DomainRows
from torchrec_xd.datasets.pipeline.past import latest
from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies, encode, vocabulary
from torchrec_xd.prepare.engine import count_rows
from torchrec_xd.prepare.hashing import stable_hash

SOURCE, TARGET = "grocery", "drug_gm"
DEPARTMENTS = {SOURCE: "GROCERY", TARGET: "DRUG GM"}
COLD_ONE_IN = 5
COMMON = ("display_location", "mailer_location")
"""Features of a product on promotion that both departments have."""
SPECIFIC: dict[str, dict[str, Value | str]] = {
    SOURCE: {"package_size": "package_size", "type_recency": PRODUCT["type_recency"]},
    TARGET: {name: PRODUCT[name] for name in ("price_level", "discount_depth", "type_purchases")},
}
"""Those that one department has, besides the product and its type."""


def build(journey: Journey, settings: PrepareSettings) -> DataSet:
    """The data set's domains `grocery` and `drug_gm`."""
    vocabularies = _vocabularies(journey.until(SPLIT.valid))
    exposures = promoted_at(_exposures(journey, settings), vocabularies).cache()
    in_target = _.department == DEPARTMENTS[TARGET]
    hidden = in_target & is_cold(journey.purchases, settings.seed)
    known = replace(journey, purchases=journey.purchases.filter(~hidden).cache())
    histories = [_history(name, known, vocabularies) for name in DEPARTMENTS]
    facts = feed_facts(known, [exposures], vocabularies, histories)
    untrained = in_target & (_.cold == 1) & (_.split == "train")
    count = count_rows(exposures.filter(untrained))
    return DataSet(
        domains={
            name: DomainRows(
                exposures=exposures.filter(_.department == department, ~untrained).drop("department"),
                label="bought",
                key=PRODUCT_KEY,
                cluster=VISIT_KEY,
                features=partial(_rows, name, catalogue(journey, vocabularies, **_own(name)), facts),
            )
            for name, department in DEPARTMENTS.items()
        },
        vocabularies=vocabularies,
        sampling={"products on promotion that were not bought": 1 / (settings.negatives or NEGATIVES)},
        notes=(
            f"one in {COLD_ONE_IN} households is cold: {count} of their rows in {TARGET} before validation are left "
            "out, and their purchases there count for labels alone",
        ),
    )


def is_cold(table: Table, seed: int) -> BooleanValue:
    """Whether the household of a row is cold: one in `COLD_ONE_IN`, by hash."""
    return stable_hash(table, ["household"], seed) % COLD_ONE_IN == 0


def _exposures(journey: Journey, settings: PrepareSettings) -> Table:
    departments = journey.products.select("product", "department")
    departments = departments.filter(_.department.isin(list(DEPARTMENTS.values())))
    rows = promoted_products(journey, settings.negatives or NEGATIVES, settings.seed).join(departments, "product")
    return SPLIT.mark(rows.mutate(cold=is_cold(rows, settings.seed).cast("int8")))


def _own(name: str) -> dict[str, str]:
    """A department's vocabularies and what they encode."""
    return {f"{name}_product": "product", f"{name}_type": "type_code"}


def _vocabularies(seen: Journey) -> Vocabularies:
    found = feed_vocabularies(seen)
    for name, department in DEPARTMENTS.items():
        bought = seen.purchases.filter(_.department == department)
        found |= {own: vocabulary(bought, column) for own, column in _own(name).items()}
    return found


def _history(name: str, journey: Journey, vocabularies: Vocabularies) -> Table:
    bought = journey.purchases.filter(_.department == DEPARTMENTS[name])
    bought, row = bought.select("household", "day", "product").distinct(), f"{name}_product"
    lines = encode(bought, vocabularies, **{row: "product"})
    return latest(lines, ["household"], ["product"], PRODUCT_HISTORY, **{name: row})


def _rows(name: str, products: Table, facts: FeedFacts, exposures: Table) -> Table:
    rows = product_rows(exposures, products, facts)
    columns = {feature: feature for feature in ("cold", "week", *_own(name), *COMMON)}
    return feed_rows(rows, facts, "bought", **columns, **SPECIFIC[name])
