"""`cj_placement`: the same products in two placements, for EXIT: on promotion (target) and off it (source).

On promotion the shop recommends; off promotion the household came for the product by itself. A target row carries the
parts of its interest combination label: whether the household bought the product off promotion within some weeks, and
whether that interest fits the placement.
"""

from __future__ import annotations

from functools import partial

import ibis
from ibis import _
from ibis.expr.types import Table, Value

from torchrec_xd.datasets.complete_journey.exposures import (
    PRODUCT_KEY,
    VISIT_KEY,
    promoted_products,
    shelf_products,
    unpromoted_purchases,
)
from torchrec_xd.datasets.complete_journey.feed import product_history
from torchrec_xd.datasets.complete_journey.journey import Journey, week_day
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
from torchrec_xd.datasets.interest_labels.labels import RULES, LabelColumns, LabelSettings, fit, interest_labels
from torchrec_xd.datasets.pipeline.dataset import DataSet, DomainRows, LabelReport, SplitDays
from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies, encode, vocabulary

TARGET, SOURCE = "promoted", "shelf"
VALID_WEEK, TEST_WEEK, END_WEEK = 40, 46, 54
SPLIT = SplitDays(valid=7 * VALID_WEEK - 13, test=7 * TEST_WEEK - 13)
"""2017-09-25 and 2017-11-06, Mondays: weeks 40 to 45 and 46 to 53."""
NEGATIVES = 300
"""One in this many unbought products on promotion is kept by default. Those that the household bought
off promotion at about that time are all kept: there it is decided what may be transferred."""
SHELF_NEGATIVES = 20
LABELS = LabelColumns(
    user="household", item="product", category="category_code", time="week", until="until", groups=("age", "weekend")
)
SLOT_HOURS = (11, 15, 19)
"""A day's hours fall into four slots."""
REPORTED = ("split", "age", "scene_weekend", "scene_moment", "scene_season", "scene_display", "scene_mailer")
QUARTER_DAYS = (90, 181, 273)
NOWHERE = "0"


def build(journey: Journey, settings: PrepareSettings) -> DataSet:
    """The data set's domains `promoted` and `shelf`."""
    one_in, labels = settings.negatives or NEGATIVES, settings.labels
    vocabularies = _vocabularies(journey.until(SPLIT.valid))
    scenes = visit_scenes(journey).cache()
    off_promotion = unpromoted_purchases(journey).cache()
    kept = wanted_products(journey, off_promotion, labels)
    promoted = _placed(promoted_products(journey, one_in, settings.seed, kept), vocabularies)
    promoted = _with_group(promoted, journey, scenes, vocabularies).mutate(until=label_end(_.week)).cache()
    nowhere = {name: ibis.literal(NOWHERE) for name in ("display_location", "mailer_location")}
    shelf = _placed(shelf_products(journey, SHELF_NEGATIVES, settings.seed).mutate(**nowhere), vocabularies)
    shelf = shelf.join(scenes, VISIT_KEY).cache()
    products = catalogue(journey, vocabularies, product_id="product", product_type="type_code")
    actions = {
        name: _with_group(bought, journey, scenes, vocabularies)
        for name, bought in (
            (TARGET, journey.purchases.semi_join(journey.promotions, ["store", "week", "product"])),
            (SOURCE, off_promotion),
        )
    }
    labelled = interest_labels(
        promoted.join(journey.products.select("product", "category_code"), "product"),
        actions[TARGET],
        {SOURCE: actions[SOURCE]},
        LABELS,
        labels,
    )
    labelled = labelled.drop("category_code", "age").cache()
    facts = feed_facts(journey, [promoted, shelf], vocabularies, [product_history(journey, vocabularies)])
    return DataSet(
        domains={
            TARGET: DomainRows(
                exposures=SPLIT.mark(labelled),
                label="bought",
                key=PRODUCT_KEY,
                cluster=VISIT_KEY,
                features=partial(_target_rows, products, facts),
            ),
            SOURCE: DomainRows(
                exposures=SPLIT.mark(shelf),
                label="bought",
                key=PRODUCT_KEY,
                cluster=VISIT_KEY,
                features=partial(_source_rows, products, facts),
            ),
        },
        vocabularies=vocabularies,
        sampling={
            "products on promotion, neither bought nor bought off promotion at about that time": 1 / one_in,
            "products on the shelf that were not bought": 1 / SHELF_NEGATIVES,
        },
        notes=(
            f"labels of a row know the purchases of {labels.window} weeks before and after it, those of another split "
            "that follows excepted",
        ),
        report=LabelReport(
            domain=TARGET,
            acted="bought",
            sources={SOURCE: ("wanted", f"fit_{labels.consistency}")},
            by=tuple((name, name) for name in REPORTED),
        ),
    )


def label_end(week: Value) -> Value:
    """The week from which on labels of a row know nothing: the first of the split that follows the row's."""
    return ibis.cases((week < VALID_WEEK, VALID_WEEK), (week < TEST_WEEK, TEST_WEEK), else_=END_WEEK)


def wanted_products(journey: Journey, off_promotion: Table, labels: LabelSettings) -> Table:
    """`PRODUCT_KEY` of all that a household visiting a store in a week bought off promotion at about that time."""
    bought = off_promotion.select("household", "product", bought_week="week").distinct()
    visits = journey.visits
    near = [
        visits.household == bought.household,
        (visits.week - bought.bought_week).abs() <= labels.window,
        bought.bought_week < label_end(visits.week),
    ]
    return visits.join(bought, near).select(*PRODUCT_KEY).distinct()


def visit_scenes(journey: Journey) -> Table:
    """When a household first came to a store in a week.

    Returns:
        `VISIT_KEY`, moment (weekday x slot of the day: 1 is Monday morning, 28 Sunday evening), weekend (1 Monday to
        Friday, 2 Saturday and Sunday), season (the quarter of the week's first day).
    """
    first = journey.purchases.group_by(VISIT_KEY).agg(_hour=(_.day * 24 + _.hour).min())
    weekday = (first._hour // 24 + 6) % 7
    slot = sum((first._hour % 24 >= hour).cast("int64") for hour in SLOT_HOURS)
    season = sum((week_day(first.week) >= day).cast("int64") for day in QUARTER_DAYS)
    return first.select(
        *VISIT_KEY,
        moment=(weekday * 4 + slot + 1).cast("int32"),
        weekend=((weekday >= 5).cast("int64") + 1).cast("int32"),
        season=(season + 1).cast("int32"),
    )


def _with_group(rows: Table, journey: Journey, scenes: Table, vocabularies: Vocabularies) -> Table:
    """`rows` (`VISIT_KEY`) with the scene of the visit and the age of the household, as in `LABELS`."""
    ages = encode(journey.demographics, vocabularies, age="age").select("household", "age")
    rows = rows.join(scenes, VISIT_KEY).left_join(ages, "household").drop("household_right")
    return rows.mutate(age=_.age.fill_null(0))


def _vocabularies(seen: Journey) -> Vocabularies:
    return {
        **feed_vocabularies(seen),
        "product_id": vocabulary(seen.purchases, "product"),
        "product_type": vocabulary(seen.purchases, "type_code"),
    }


def _placed(exposures: Table, vocabularies: Vocabularies) -> Table:
    """Exposures with the vocabulary rows of store, display and mailer, and placed: 1 display, 2 mailer, 3 both."""
    displayed, mailed = exposures.display_location != NOWHERE, exposures.mailer_location != NOWHERE
    placed = displayed.cast("int64") + 2 * mailed.cast("int64")
    return promoted_at(exposures.mutate(placed=placed.cast("int32")), vocabularies)


FEATURES = {
    "product_id": "product_id",
    "product_type": "product_type",
    "package_size": "package_size",
    **PRODUCT,
    "display_location": "display_location",
    "mailer_location": "mailer_location",
    "scene_store": "store_id",
    "scene_moment": "moment",
    "scene_season": "season",
    "scene_display": "display_location",
    "scene_mailer": "mailer_location",
    "scene_weekend": "weekend",
    "scene_placement": "placed",
}
"""Beside those of every feed. Scenes are columns of their own: a model gives them tables of their own."""


def _target_rows(products: Table, facts: FeedFacts, exposures: Table) -> Table:
    rows = product_rows(exposures, products, facts)
    fits = {f"fit_{rule}": fit(SOURCE, rule) for rule in RULES}
    return feed_rows(rows, facts, "bought", wanted=f"wanted_{SOURCE}", **fits, **FEATURES)


def _source_rows(products: Table, facts: FeedFacts, exposures: Table) -> Table:
    return feed_rows(product_rows(exposures, products, facts), facts, "bought", **FEATURES)
