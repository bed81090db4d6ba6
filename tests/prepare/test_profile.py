"""Profiles: numbers worked out by hand; what is planted is found, and nothing else is."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_shop import goods, prepare, recipe, write_shop
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine import connect
from torchrec_xd.prepare.engine_settings import DuckDBSettings, EngineSettings
from torchrec_xd.prepare.profile.api import profile_data
from torchrec_xd.prepare.profile.measure import measure
from torchrec_xd.prepare.profile.result import Profile
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

DAY = datetime(2024, 5, 1, tzinfo=timezone.utc)
FEATURES: list[dict[str, Any]] = [
    {"column": "item", "kind": "id", "group": "shared", "rows": 1000},
    {"column": "price", "kind": "dense", "group": "shared"},
    {"column": "tags", "kind": "bag", "group": "shared", "rows": 1000},
    {"column": "text", "kind": "vector", "group": "shared", "length": 2},
]


def schema_of(root: Path, domains: dict[str, str], features: list[dict[str, Any]], **more: Any) -> Schema:
    """Domains with their roles, each with the label `click` and the splits that it has files for."""
    content = {
        "name": "shop",
        "root": str(root),
        "user": "user",
        "domains": {
            name: {
                "role": role,
                **{split: f"{name}/{split}.parquet" for split in SPLITS if (root / name / f"{split}.parquet").exists()},
            }
            for name, role in domains.items()
        },
        "tasks": [{"label": "click", "domain": name} for name in domains],
        "features": features,
        **more,
    }
    return validate(Schema, content, "schema")


SPLITS = {"train": 6000, "valid": 2000, "test": 2000}
"""With the rows of clean logs."""


def write(root: Path, domain: str, split: str, columns: dict[str, Any]) -> None:
    (root / domain).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / domain / f"{split}.parquet", row_group_size=4096)


def profile_of(schema: Schema, **more: Any) -> Profile:
    root = Path(schema.root)
    return measure(connect(EngineSettings(duckdb=DuckDBSettings(threads=1)), root / "spill"), schema, **more)


def small(root: Path) -> Schema:
    """Ten rows, in two domains."""
    write(
        root,
        "a",
        "train",
        {
            "user": [1, 1, 2, 3],
            "time": [DAY, DAY, DAY + timedelta(hours=25), DAY + timedelta(hours=26)],
            "click": [1, 1, 0, None],
            "item": [5, 5, 6, 0],
            "price": [1.0, 3.0, None, 5.0],
            "tags": [[1, 2], [1, 2], [], None],
            "text": pa.array([[3.0, 4.0], [0.0, 0.0], None, [6.0, 8.0]], pa.list_(pa.float32())),
            "w": [1.0, 1.0, 2.0, 5.0],
        },
    )
    other = {"tags": [[0], [1]], "text": pa.array([[3.0, 4.0]] * 2, pa.list_(pa.float32())), "w": [1.0, 1.0]}
    when = {"time": [DAY + timedelta(days=3), DAY]}
    write(root, "a", "test", {"user": [2, 9], **when, "click": [1, 0], "item": [6, 7], "price": [1.0, 2.0], **other})
    for split in ("train", "test"):
        write(root, "b", split, {"user": [1, 7], **when, "click": [1, 0], "item": [5, 8], "price": [1.0, 2.0], **other})
    schema = schema_of(root, {"a": "source", "b": "target"}, FEATURES, weight="w")
    nullable = tuple(task.model_copy(update={"nullable": True}) for task in schema.tasks)
    return schema.model_copy(update={"tasks": nullable})


@pytest.fixture(scope="module")
def ten_rows(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile_of(small(tmp_path_factory.mktemp("data")))


def test_labels(ten_rows: Profile) -> None:
    train = next(each for each in ten_rows.labels if (each.domain, each.split) == ("a", "train"))
    assert (train.rows, train.labelled, train.positives) == (4, 3, 2)
    assert train.rate == 2 / 3
    assert train.weighted_rate == 0.5
    days = [
        (each.day, each.rows, each.positives) for each in ten_rows.days if (each.domain, each.split) == ("a", "train")
    ]
    assert days == [(date(2024, 5, 1), 2, 2), (date(2024, 5, 2), 2, 0)]


def test_features(ten_rows: Profile) -> None:
    found = {(each.column, each.split): each for each in ten_rows.features if each.domain == "a"}
    item, price, tags, text = (found[column, "train"] for column in ("item", "price", "tags", "text"))
    assert (item.distinct, item.missing, item.row_0, item.unseen) == (3, 0, 0.25, None)
    assert found["item", "test"].unseen == 0.5
    assert (price.distinct, price.missing, price.mean, price.row_0) == (3, 0.25, 3.0, None)
    assert price.std == pytest.approx(math.sqrt(8 / 3))
    assert (price.percentiles[0], price.percentiles[2], price.percentiles[4]) == (1.0, 3.0, 5.0)
    assert (tags.distinct, tags.missing, tags.mean, tags.row_0) == (2, 0.5, 1.0, 0.0)
    assert found["tags", "test"].row_0 == 0.5
    assert (text.missing, text.mean, text.percentiles[4]) == (0.25, 5.0, 10.0)


def test_drift_is_the_population_stability_index(ten_rows: Profile) -> None:
    found = {(each.column, each.split): each for each in ten_rows.drift if each.domain == "a"}
    # Buckets 1, 2, 3, 5 and null, half a row added to each: training has 1, 3, 5 and null, test 1 and 2.
    p, q = np.array([1.5, 0.5, 1.5, 1.5, 1.5]) / 6.5, np.array([1.5, 1.5, 0.5, 0.5, 0.5]) / 4.5
    assert found["price", "test"].psi == pytest.approx(float(np.sum((q - p) * np.log(q / p))))
    assert found["price", "test"].noise == pytest.approx(4 * (1 / 4 + 1 / 2))


def test_what_domains_share(ten_rows: Profile) -> None:
    train = next(each for each in ten_rows.users if each.split == "train")
    assert (train.source, train.target, train.source_users) == ("a", "b", 3)
    assert (train.users, train.shared_users, train.rows, train.shared_rows) == (2, 1, 2, 1)
    item = next(each for each in ten_rows.tables if each.table == "item")
    assert (item.source_ids, item.target_ids, item.shared_ids) == (2, 2, 1), "row 0 does not count"
    assert (item.lookups, item.shared_lookups, item.sampled) == (2, 1, False)


def test_duplicates(ten_rows: Profile) -> None:
    found = {(each.domain, each.split): each for each in ten_rows.duplicates}
    assert (found["a", "train"].rows, found["a", "train"].duplicates, found["a", "train"].timed) == (4, 1, True)
    assert (found["a", "test"].duplicates, found["a", "test"].in_training) == (0, 0)
    assert found["b", "test"].in_training == 2


def test_label_rates_by_activity(ten_rows: Profile) -> None:
    rows = [each for each in ten_rows.activity if (each.domain, each.split) == ("a", "test")]
    # User 2 has one training row, user 9 none.
    assert [(each.low, each.high, each.rows, each.positives) for each in rows] == [(0, 0, 1, 0), (1, 2, 1, 1)]


def logs(rows: int, seed: int) -> dict[str, Any]:
    """Rows without any fault: the click depends a little on the item."""
    rng = np.random.default_rng(seed)
    item = rng.integers(1, 200, rows)
    return {
        "user": rng.integers(0, 300, rows),
        "time": 1_714_521_600 + rng.permutation(rows) * 60,
        "click": (rng.random(rows) < 0.1 + 0.2 * (item % 2)).astype(np.int64),
        "item": item,
        "price": rng.lognormal(size=rows),
        "tags": pa.ListArray.from_arrays(np.arange(0, 2 * rows + 1, 2, dtype=np.int32), rng.integers(1, 9, 2 * rows)),
    }


def plant(root: Path, changes: dict[tuple[str, str], dict[str, Any]] | None = None) -> Schema:
    """Two domains of clean rows, with other columns in some."""
    for i, (domain, split) in enumerate((domain, split) for domain in ("a", "b") for split in SPLITS):
        columns = logs(SPLITS[split], seed=i)
        write(root, domain, split, {**columns, **(changes or {}).get((domain, split), {})})
    return schema_of(root, {"a": "source", "b": "target"}, FEATURES[:3])


def test_clean_rows_have_no_findings(tmp_path: Path) -> None:
    found = profile_of(plant(tmp_path))
    assert found.findings == []
    assert {each.auc is not None and each.auc < 0.7 for each in found.separations} == {True}
    assert found.days[0].day == date(2024, 5, 1), "seconds since 1970"


def test_a_sample_is_about_as_large_as_asked_and_says_nearly_the_same(tmp_path: Path) -> None:
    schema = plant(tmp_path, {("a", "train"): logs(40_000, seed=9)})
    found = profile_of(schema, sample_rows=10_000)
    rows, sampled = found.sampled["a/train"]
    assert rows == 40_000
    assert 6_000 < sampled < 14_000
    price = next(each for each in found.features if (each.column, each.split) == ("price", "train"))
    assert price.rows == sampled
    assert price.mean == pytest.approx(math.exp(0.5), rel=0.1)
    assert next(each for each in found.labels if each.split == "train").rows == 40_000


def planted(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    train, test = logs(6000, seed=0), logs(2000, seed=2)
    click = train["click"]
    known = pa.array(np.where(click == 1, 1.0, np.nan), mask=(click == 0) | (np.arange(6000) % 2 == 0))
    return {
        "number": {("a", "train"): {"price": -click + train["price"] / 1e3}},
        "id": {("a", "train"): {"item": train["item"] + 200 * click}},
        "bag": {("a", "train"): {"tags": pa.array([[1 + c, 4] for c in click])}},
        "known": {("a", "train"): {"price": known}},
        "drift": {("a", "test"): {"price": test["price"] * 3}},
        "unseen": {("a", "test"): {"item": np.where(np.arange(2000) % 2, 0, test["item"])}},
        "new ids": {("a", "test"): {"item": test["item"] + np.where(np.arange(2000) % 2, 500, 0)}},
        "rate": {("a", "test"): {"click": np.where(np.arange(2000) % 2, 0, test["click"])}},
        "constant": {("a", split): {"price": np.full(rows, 2.5)} for split, rows in SPLITS.items()},
        "no positives": {("a", "valid"): {"click": np.zeros(2000, dtype=np.int64)}},
        "users": {("b", split): {"user": 1000 + np.arange(rows)} for split, rows in SPLITS.items()},
        "repeated": {("a", "train"): {k: np.repeat(v[:3000], 2) for k, v in train.items() if k != "tags"}},
        "test rows in training": {("a", "test"): logs(6000, seed=0)},
    }[name]


@pytest.mark.parametrize(
    ("name", "severity", "text"),
    [
        ("number", "error", "a: feature 'price' alone separates label 'click' with an AUC of 1.000: it likely knows"),
        ("id", "error", "a: feature 'item' alone separates label 'click' with an AUC of "),
        ("bag", "error", "a: feature 'tags' alone separates label 'click' with an AUC of 1.000: "),
        ("known", "error", "a: feature 'price' is known in "),
        ("drift", "warning", "a: feature 'price' drifts from train to test: PSI "),
        ("unseen", "warning", "a: 50% of the values of 'item' in test were not in training"),
        ("new ids", "warning", "a: 50% of the values of 'item' in test were not in training"),
        ("rate", "warning", "a: the rate of label 'click' is 19.30% in train and 9.40% in test"),
        ("constant", "warning", "a: feature 'price' has one value in all training rows"),
        ("no positives", "error", "a, valid: all 2,000 rows with label 'click' are negative"),
        ("users", "warning", "b: 0.00% of the training rows are of users with training rows in a: "),
        ("repeated", "warning", "a, train: 50.0% of the rows repeat another one (equal in user, time and all ids)"),
        ("test rows in training", "error", "a, test: 100.0% of the rows are training rows too"),
    ],
)
def test_what_is_planted_is_found(tmp_path: Path, name: str, severity: str, text: str) -> None:
    first = profile_of(plant(tmp_path, planted(name))).findings[0]
    assert first.text.startswith(text)
    assert first.severity == severity
    assert first.remedy
    assert str(first) == f"{first.text}; {first.remedy}"


def test_ids_of_the_same_table_that_mean_different_things(tmp_path: Path) -> None:
    items = {("b", split): {"item": 500 + np.arange(n) % 200} for split, n in SPLITS.items()}
    [finding] = profile_of(plant(tmp_path, items)).findings
    assert finding.text == (
        "table 'item': 0.00% of the ids in the rows of b occur in those of a, though both look them up there"
    )


def test_the_auc_of_a_number_is_that_of_its_ranks(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    columns = {**logs(1000, 0), "price": rng.integers(0, 20, 1000).astype(float)}
    columns["click"] = (rng.random(1000) < 0.2 + columns["price"] / 40).astype(np.int64)
    found = profile_of(plant(tmp_path, {("a", "train"): columns}))
    price = next(each for each in found.separations if (each.domain, each.column) == ("a", "price"))
    ups, downs = (columns["price"][columns["click"] == label] for label in (1, 0))
    pairs = (ups[:, None] > downs).mean() + (ups[:, None] == downs).mean() / 2
    assert price.auc == pytest.approx(pairs)
    assert (price.positives, price.known_positives) == (len(ups), len(ups))


def test_rows_without_a_time_have_no_days_and_may_repeat(tmp_path: Path) -> None:
    for split in SPLITS:
        columns = {key: value for key, value in logs(600, seed=1).items() if key != "time"}
        write(tmp_path, "a", split, {key: pa.concat_arrays([pa.array(value)] * 2) for key, value in columns.items()})
    found = profile_of(schema_of(tmp_path, {"a": "target"}, FEATURES[:3]))
    assert found.days == []
    assert found.duplicates[0].duplicates >= 600
    assert found.findings == []
    assert found.users == []


def test_files_that_are_not_as_the_schema_says_are_refused(tmp_path: Path) -> None:
    schema = plant(tmp_path)
    schema = schema.model_copy(update={"features": (*schema.features, replace_column(schema, "size"))})
    with pytest.raises(UserError, match=r"train\.parquet \(domain 'a'\): no column 'size'"):
        profile_of(schema)


def replace_column(schema: Schema, column: str) -> Any:
    return schema.features[1].model_copy(update={"column": column})


def test_parts_of_the_time_do_not_drift(tmp_path: Path) -> None:
    """A split of a few days has other weekdays than weeks of training."""
    folder = write_shop(tmp_path / "shop")
    content = recipe(folder, goods("item"), goods("weekday", calendar="weekday"))
    lines: list[str] = []
    out = prepare(folder, content, progress=lines.append)
    found = profile_data(out, tmp_path / "page.html", lines.append)
    assert {each.column for each in found.drift} == {"user_id", "item"}
    assert "'weekday' drifts" not in " ".join(lines)
