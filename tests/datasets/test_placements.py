"""`cj_placement` against loops over the raw rows, and against changes that it must not see."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path

import ibis
import pyarrow.dataset as ds
import pytest

from tests.support.raw_journey import START, promotion, purchase, tiny, varied, week_of, write_raw
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.datasets.complete_journey import placements as cj_placement
from torchrec_xd.datasets.complete_journey.journey import load, raw_files
from torchrec_xd.datasets.complete_journey.placements import (
    END_WEEK,
    SHELF_NEGATIVES,
    TEST_WEEK,
    VALID_WEEK,
    visit_scenes,
)

SCHEMA = Path(__file__).parents[2] / "configs" / "schemas" / "cj_placement.yaml"
WINDOW = 4


@pytest.fixture(scope="module")
def raw():
    return varied(5)


def journey_of(raw, folder):
    return load(ibis.duckdb.connect(threads=1), raw_files(write_raw(raw, folder)))


@pytest.fixture(scope="module")
def data_set(raw, tmp_path_factory):
    return cj_placement.build(journey_of(raw, tmp_path_factory.mktemp("raw")), PrepareSettings(negatives=3))


class Lines:
    """Purchases with their week, category, group, and whether they were on promotion."""

    def __init__(self, raw):
        promoted = {(row["store_id"], row["week"], row["product_id"]) for row in raw["promotions"]}
        category = {row["product_id"]: row["product_category"] for row in raw["products"]}
        self.promotions = promoted
        self.ages = {row["household_id"]: row["age"] for row in raw["demographics"]}
        self.first: dict = {}
        self.lines = []
        for row in raw["transactions"]:
            visit = (row["household_id"], row["store_id"], row["week"])
            moment = row["transaction_timestamp"] - timedelta(hours=4)
            self.first[visit] = min(moment, self.first.get(visit, moment))
            on = (row["store_id"], row["week"], row["product_id"]) in promoted
            self.lines.append((visit, row["product_id"], category[row["product_id"]], on))

    def group(self, visit):
        return self.ages.get(visit[0]), self.first[visit].weekday() >= 5

    def bought(self, on):
        return [(visit, product, category) for visit, product, category, promoted in self.lines if promoted == on]


def end_of(week):
    return VALID_WEEK if week < VALID_WEEK else TEST_WEEK if week < TEST_WEEK else END_WEEK


def test_exposures_and_labels_are_what_loops_find(raw, data_set):
    lines = Lines(raw)
    on, off = lines.bought(True), lines.bought(False)
    rows = data_set.domains["promoted"].exposures.to_pyarrow().to_pylist()
    found = {((r["household"], r["store"], r["week"]), r["product"]): r for r in rows}
    assert len(found) == len(rows) > 300
    bought = {(visit, product) for visit, product, _category in on}
    category = {product: category for _visit, product, category in on + off}
    offered = {
        (visit, product)
        for visit in lines.first
        for store, week, product in lines.promotions
        if (store, week) == visit[1:]
    }
    wanted = {
        (visit, product)
        for visit, product in offered
        for other, item, _category in off
        if (other[0], item) == (visit[0], product)
        and abs(other[2] - visit[2]) <= WINDOW
        and other[2] < end_of(visit[2])
    }
    assert {key for key, row in found.items() if row["bought"]} == bought
    assert {key for key, row in found.items() if row["wanted_shelf"]} == wanted
    assert wanted - bought
    assert found.keys() <= offered
    for key, row in found.items():
        assert row["weight"] == (1 if key in bought | wanted else 3)
        (household, _store, week), product = key
        mine = [
            visit
            for visit, _product, cat in on
            if (visit[0], cat) == (household, category.get(product))
            and abs(visit[2] - week) <= WINDOW
            and visit[2] < end_of(week)
            and cat is not None
        ]
        assert row["individual"] == bool(mine), key
    checked = 0
    for (visit, product), row in found.items():
        kind = category.get(product)
        if kind is None:
            assert row["group_shelf"] == 0
            continue
        counts = []
        for known in ([line for line in side if line[0][2] < end_of(visit[2])] for side in (on, off)):
            members = [line for line in known if lines.group(line[0]) == lines.group(visit)]
            both, everybody = (
                sum(line[2] == kind for line in members),
                sum(line[2] == kind for line in known) / len(known),
            )
            counts.append((both, everybody, (both + 20 * everybody) / (len(members) + 20)))
        (target, target_all, target_own), (source, source_all, source_own) = counts
        own, other = (target_all, source_all) if target + source < 20 else (target_own, source_own)
        assert row["group_shelf"] == (own > 0 and own >= other), (visit, product, counts)
        checked += 1
    assert checked > 100


def test_the_shelf_holds_what_was_sold_there_off_promotion(raw, data_set):
    lines = Lines(raw)
    off = lines.bought(False)
    on_shelf = {(*visit[1:], product) for visit, product, _category in off}
    rows = data_set.domains["shelf"].exposures.to_pyarrow().to_pylist()
    bought = {(visit, product) for visit, product, _category in off}
    found = {((r["household"], r["store"], r["week"]), r["product"]): (r["bought"], r["weight"]) for r in rows}
    assert {key for key, (label, _weight) in found.items() if label} == bought
    assert all((*visit[1:], product) in on_shelf for visit, product in found)
    assert set(found.values()) == {(1, 1), (0, SHELF_NEGATIVES)}


def test_scenes_are_of_the_first_visit_in_the_week(tmp_path):
    raw = tiny()
    raw["transactions"] = [
        purchase(1, 1, 20, hour=24),  # Saturday, 20:00 Eastern
        purchase(1, 2, 18, hour=19),  # Thursday of the same week, 15:00
        purchase(2, 1, 1, hour=12),  # Monday, 8:00
        purchase(3, 1, 280, hour=17),  # a Sunday in October, 13:00
    ]
    found = visit_scenes(journey_of(raw, tmp_path)).order_by("household").to_pyarrow().to_pylist()
    assert [(row["moment"], row["weekend"], row["season"]) for row in found] == [
        (3 * 4 + 3, 1, 1),
        (1, 1, 1),
        (6 * 4 + 2, 2, 4),
    ]


def prepared(raw, folder):
    settings = PrepareSettings(threads=1, negatives=3)
    manifest = prepare("cj_placement", folder / "out", settings, str, raw=write_raw(raw, folder / "raw"))
    return manifest, {
        (domain, split): ds.dataset(folder / "out" / domain / split).to_table()
        for domain, splits in manifest.domains.items()
        for split in splits
    }


def test_files_report_and_columns(raw, tmp_path):
    manifest, rows = prepared(raw, tmp_path)
    schema = load_schema(SCHEMA)
    for domain in schema.domains:
        features = {feature.column for feature in schema.features_of(domain)}
        labels = {task.label for task in schema.tasks if task.domain == domain}
        assert set(rows[domain, "train"].column_names) == features | labels | {"household", "weight", "activity"}
    table = rows["promoted", "train"]
    fits = {rule: table[f"fit_{rule}"].to_pylist() for rule in ("individual", "group", "any", "all")}
    pairs = list(zip(fits["individual"], fits["group"], strict=True))
    assert fits["any"] == [int(a or b) for a, b in pairs]
    assert fits["all"] == [int(a and b) for a, b in pairs]
    assert set(pairs) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(table["scene_placement"].to_pylist()) <= {0, 1, 2, 3}
    assert set(rows["shelf", "train"]["scene_placement"].to_pylist()) == {0}
    assert manifest.reports == ("labels.md", "labels.html")
    text = (tmp_path / "out" / "labels.md").read_text()
    icl = [y + w * c for y, w, c in zip(*(table[n].to_pylist() for n in ("bought", "wanted", "fit_any")), strict=True)]
    shares = " | ".join(f"{100 * icl.count(label) / len(icl):.1f} %" for label in (0, 1, 2))
    wanted = table["wanted"].to_pylist()
    assert f"| train | {len(icl):,} | {shares} | {100 * sum(wanted) / len(icl):.1f} % | " in text
    page = (tmp_path / "out" / "labels.html").read_text()
    assert "By scene_moment" in page
    assert "https://cdn" not in page.replace("https://cdn.plot.ly/un/", "").replace("https://cdn.jsdelivr.net", "")
    again, _rows = prepared(raw, tmp_path)
    assert again == manifest


def test_training_rows_do_not_see_what_comes_later(tmp_path):
    """All purchases and promotions from the first week of validation on are replaced; training rows stay."""
    raw = varied(6)
    later = copy.deepcopy(raw)
    first = 7 * VALID_WEEK - 13
    later["transactions"] = [
        row for row in raw["transactions"] if (row["transaction_timestamp"] - START).days < first
    ] + [purchase(household, item, day) for household in range(1, 13) for item in range(1, 31) for day in (300, 330)]
    later["promotions"] = [row for row in raw["promotions"] if row["week"] < week_of(first)]
    later["promotions"] += [promotion(1, day) for day in (300, 330)]
    (_, before), (_, after) = prepared(raw, tmp_path / "before"), prepared(later, tmp_path / "after")
    for domain in ("promoted", "shelf"):
        assert before[domain, "train"].num_rows > 100
        assert after[domain, "train"] == before[domain, "train"]
    assert after["promoted", "test"] != before["promoted", "test"]
