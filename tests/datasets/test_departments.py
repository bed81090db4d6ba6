"""`cj_departments`: two departments, and households that are new to one of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.support.journey_tables import table
from tests.support.naive_journey import Naive
from tests.support.raw_journey import varied, write_raw
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.datasets.complete_journey.departments import is_cold

SCHEMA = Path(__file__).parents[2] / "configs" / "schemas" / "cj_departments.yaml"
SEED = 5


def silent(line: str) -> None:
    assert line


@pytest.fixture(scope="module")
def raw():
    return varied(3)


@pytest.fixture(scope="module")
def rows(raw, tmp_path_factory):
    """The rows by (domain, split) and the manifest."""
    folder = tmp_path_factory.mktemp("departments")
    settings = PrepareSettings(threads=1, negatives=2, seed=SEED)
    manifest = prepare("cj_departments", folder / "out", settings, silent, raw=write_raw(raw, folder / "raw"))
    return {
        (domain, split): ds.dataset(folder / "out" / domain / split).to_table().to_pylist()
        for domain, splits in manifest.domains.items()
        for split in splits
    }, manifest


@pytest.fixture(scope="module")
def cold():
    households = table(household=list(range(1, 13)))
    found = households.filter(is_cold(households, SEED)).household.to_pyarrow().to_pylist()
    assert 0 < len(found) < 6
    return set(found)


def test_a_fifth_of_all_households_is_cold():
    households = table(household=list(range(1, 2501)))
    assert 450 < households.filter(is_cold(households, 0)).count().to_pyarrow().as_py() < 550


def test_every_row_says_whether_its_household_is_cold(rows, cold):
    for found in rows[0].values():
        assert {row["household"] in cold for row in found if row["cold"]} <= {True}
        assert {row["household"] in cold for row in found if not row["cold"]} <= {False}


def test_cold_households_are_trained_on_in_the_source_alone(rows, cold):
    found, manifest = rows
    households = {key: {row["household"] for row in some} for key, some in found.items()}
    assert not households["drug_gm", "train"] & cold
    assert households["grocery", "train"] >= cold
    assert households["drug_gm", "valid"] & cold
    assert households["drug_gm", "test"] & cold
    assert "rows in drug_gm before validation are left out" in manifest.notes[0]


def test_cold_households_have_no_target_history(rows, cold):
    found = rows[0]["drug_gm", "test"]
    blank = [row for row in found if row["household"] in cold]
    known = [row for row in found if row["household"] not in cold]
    assert {row["hist_drug_gm"] and 1 for row in blank} == {None}
    assert {row["department_purchases"] for row in blank} == {1}
    assert all(row["hist_grocery"] for row in blank)
    assert all(row["hist_drug_gm"] for row in known)
    assert {row["bought"] for row in blank} == {0, 1}


def test_hidden_purchases_count_for_labels_alone(raw, rows, cold):
    """Activity of every test row, as a loop over the purchases without the hidden ones finds it."""
    departments = {row["product_id"]: row["department"] for row in raw["products"]}
    hidden = [
        row
        for row in raw["transactions"]
        if row["household_id"] in cold and departments[row["product_id"]] == "DRUG GM"
    ]
    assert hidden
    naive = Naive(raw | {"transactions": [row for row in raw["transactions"] if row not in hidden]})
    days = range(274, 366, 7)
    expected = {household: {naive.household(household, day)["activity"] for day in days} for household in range(1, 13)}
    for row in rows[0]["drug_gm", "test"] + rows[0]["grocery", "test"]:
        assert row["activity"] in expected[row["household"]]


def test_weeks_are_those_of_the_splits(rows):
    weeks = {split: {row["week"] for row in rows[0]["grocery", split]} for split in ("train", "valid", "test")}
    # 2017-07-10 and 2017-10-02 are Mondays, of weeks 29 and 41.
    assert max(weeks["train"]) < 29 <= min(weeks["valid"])
    assert max(weeks["valid"]) < 41 <= min(weeks["test"])


def test_columns_are_those_of_the_schema(rows):
    schema = load_schema(SCHEMA)
    for domain in schema.domains:
        columns = {feature.column for feature in schema.features_of(domain)}
        assert set(rows[0][domain, "train"][0]) == columns | {
            "household",
            "weight",
            "activity",
            "cold",
            "week",
            "bought",
        }
        specific = {feature.column for feature in schema.features_of(domain, "specific")}
        assert f"{domain}_product" in specific
        assert len(specific) in {4, 5}
