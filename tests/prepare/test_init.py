"""`torchrec-xd init`: what is guessed of real files, and the recipe that is written."""

from __future__ import annotations

import json
from datetime import timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import sqlglot

from tests.support.raw_logs import START, exposures, with_columns
from tests.support.recipes import feature, made_recipe, prepared


@pytest.fixture
def two_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pa_csv.write_csv(exposures(2000, 100), "views.csv")
    pa_csv.write_csv(exposures(600, 30, item="coupon_id", seed=1), "coupons.csv")
    return tmp_path


def test_two_csv_files_become_a_source_and_a_target(two_logs: Path) -> None:
    recipe, _ = made_recipe(Path("shop.yaml"), "views=views.csv", "coupons=coupons.csv")
    assert recipe.name == "shop"
    assert {name: table.path for name, table in recipe.inputs.items()} == {
        "views": "views.csv",
        "coupons": "coupons.csv",
    }
    assert recipe.views == {}
    roles = {name: (d.role, d.rows, d.user, d.time, d.labels) for name, d in recipe.domains.items()}
    assert roles == {
        "views": ("source", "views", "user_id", "ts", {"click": "click"}),
        "coupons": ("target", "coupons", "user_id", "ts", {"click": "click"}),
    }
    # 50 days from the first of March on: 80 % of the rows are earlier than the tenth of April.
    assert (recipe.split.valid, recipe.split.test) == ("2024-04-10", "2024-04-15")
    columns = [each.column for each in recipe.features]
    assert columns == [
        "user_id",
        "item_id",
        "coupon_id",
        "last_views",
        "views_of_user",
        "last_coupons",
        "coupons_of_user",
        "views_of_item",
        "coupons_of_item",
        "age",
        "category",
        "price",
        "device",
        "hour",
        "weekday",
    ]
    assert feature(recipe, "user_id") == {"kind": "id", "group": "user"}
    assert feature(recipe, "item_id") == {"kind": "id", "group": "specific", "domains": ("views",)}
    assert feature(recipe, "age") == {"kind": "id", "group": "user"}
    assert feature(recipe, "category") == {"kind": "id", "group": "shared"}
    assert feature(recipe, "price") == {"kind": "dense", "group": "shared", "standard": True}
    assert feature(recipe, "device") == {"kind": "id", "group": "context"}
    history = {"events": "coupons", "value": "coupon_id", "where": "click = 1"}
    assert feature(recipe, "last_coupons") == {
        "kind": "sequence",
        "group": "sequence",
        "table": "coupon_id",
        "length": 20,
        "history": history,
    }
    assert feature(recipe, "views_of_user")["total"] == {"events": "views", "what": "count", "by": ("user",), "days": 7}
    assert feature(recipe, "coupons_of_item")["total"]["by"] == ("coupon_id",)


def test_every_guess_stands_with_its_reason(two_logs: Path) -> None:
    _, text = made_recipe(Path("shop.yaml"), "views=views.csv", "coupons=coupons.csv")
    lines = [line.strip() for line in text.splitlines()]

    def above(line: str) -> str:
        return lines[lines.index(line) - 1]

    assert lines[0] == "# Made by: torchrec-xd init views=views.csv coupons=coupons.csv --out shop.yaml"
    assert above("views: views.csv") == "# 2,000 rows, 8 columns"
    assert above("user: user_id") == "# named like a user, integers, 80 values in 2,000 rows of the sample"
    assert above("time: ts") == "# timestamps"
    assert (
        above("role: target") == "# QUESTION: it has the fewest rows: what others may help; is it the other way round?"
    )
    assert above("- {column: age, kind: id, group: user}") == (
        "# integers, 30 different in the sample; constant per user in the sample"
    )
    assert above("- {column: category, kind: id, group: shared}") == "# texts, 3 different in the sample"


def test_one_log_makes_one_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(exposures(400, 20), "log.parquet")
    recipe, text = made_recipe(Path("log.yaml"), "log=log.parquet")
    assert {name: domain.role for name, domain in recipe.domains.items()} == {"log": "target"}
    assert "# one log makes one target domain; transfer needs a source domain too" in text
    assert feature(recipe, "category")["group"] == "specific"


def test_items_of_one_name_share_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(exposures(400, 20), "a.parquet")
    pq.write_table(exposures(200, 20, seed=1), "b.parquet")
    recipe, text = made_recipe(Path("x.yaml"), "a=a.parquet", "b=b.parquet")
    assert feature(recipe, "item_id") == {"kind": "id", "group": "shared"}
    assert feature(recipe, "last_b")["table"] == "item_id"
    assert "# QUESTION: is item_id the same thing in these domains?" in text


def test_users_and_items_of_attribute_tables_are_joined(two_logs: Path) -> None:
    pa_csv.write_csv(pa.table({"item_id": range(100), "brand": [f"b{i % 7}" for i in range(100)]}), "items.csv")
    pa_csv.write_csv(pa.table({"user_id": range(80), "income": [i % 5 for i in range(80)]}), "people.csv")
    inputs = ["views=views.csv", "coupons=coupons.csv", "items=items.csv", "people=people.csv"]
    recipe, text = made_recipe(Path("shop.yaml"), *inputs)
    assert recipe.views["views_rows"] == (
        "SELECT r.*, k0.brand, k1.income\nFROM views AS r\nLEFT JOIN items AS k0 ON r.item_id = k0.item_id\n"
        "LEFT JOIN people AS k1 ON r.user_id = k1.user_id"
    )
    assert (recipe.domains["views"].rows, recipe.domains["coupons"].rows) == ("views_rows", "coupons_rows")
    assert feature(recipe, "brand") == {"kind": "id", "group": "specific", "domains": ("views",)}
    assert feature(recipe, "income") == {"kind": "id", "group": "user"}
    assert list(recipe.domains) == ["views", "coupons"]
    assert "# 'items' has each item_id once: joined by it" in text


def test_a_log_without_labels_is_history(two_logs: Path) -> None:
    pa_csv.write_csv(exposures(300, 100, seed=2).select(["user_id", "item_id", "ts"]), "baskets.csv")
    recipe, text = made_recipe(Path("x.yaml"), "views=views.csv", "baskets=baskets.csv")
    assert list(recipe.domains) == ["views"]
    assert list(recipe.events) == ["views", "baskets"]
    assert feature(recipe, "last_baskets")["history"] == {"events": "baskets", "value": "item_id"}
    assert "# a log without a label: for histories and totals only" in text


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (1000, "ms"), (1_000_000, "us")])
def test_numbers_since_1970_name_their_unit(tmp_path: Path, scale: int, unit: str) -> None:
    first = int(START.replace(tzinfo=timezone.utc).timestamp())
    table = exposures(400, 20)
    pq.write_table(with_columns(table, ts=[(first + i * 9000) * scale for i in range(400)]), tmp_path / "log.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert (recipe.domains["log"].time, recipe.domains["log"].time_unit) == ("ts", unit)
    assert (recipe.events["log"].time, recipe.events["log"].time_unit) == ("ts", unit)
    # 400 rows, one every 9,000 s: 80 % of the range are 33.3 days, 90 % are 37.4 days.
    assert (recipe.split.valid, recipe.split.test) == ("2024-04-03", "2024-04-07")


@pytest.mark.parametrize(
    ("form", "sql", "question"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", "CAST(r.ts AS TIMESTAMP) AS ts_parsed", False),
        ("%d.%m.%Y %H:%M", "strptime(r.ts, '%d.%m.%Y %H:%M') AS ts_parsed", False),
        ("%d/%m/%Y", "strptime(r.ts, '%d/%m/%Y') AS ts_parsed", False),
        ("%Y%m%d", "strptime(r.ts, '%Y%m%d') AS ts_parsed", False),
    ],
)
def test_times_that_are_text_are_parsed_by_a_view(tmp_path: Path, form: str, sql: str, question: bool) -> None:
    table = exposures(400, 20)
    texts = [time.strftime(form) for time in table["ts"].to_pylist()]
    pq.write_table(with_columns(table, ts=texts), tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert sql in recipe.views["log_rows"]
    assert recipe.domains["log"].time == "ts_parsed"
    assert recipe.split.valid is not None
    assert recipe.split.valid.startswith("2024-04-10")
    assert ("which comes first, the day or the month?" in text) is question


def test_day_and_month_that_could_change_places_are_asked_for(tmp_path: Path) -> None:
    table = exposures(400, 20)
    texts = [f"{1 + i // 40:02d}/05/2024" for i in range(400)]
    pq.write_table(with_columns(table, ts=texts), tmp_path / "log.parquet")
    _, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert "# QUESTION: which comes first, the day or the month?" in text


def test_without_times_rows_are_split_by_a_hash_of_them(tmp_path: Path) -> None:
    pq.write_table(exposures(2000, 100).drop_columns("ts"), tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert (recipe.split.column, recipe.events, recipe.domains["log"].time) == ("split_by_hash", {}, None)
    assert "QUESTION: no column looks like a time" in text
    rows = prepared(tmp_path / "x.yaml")
    assert sum(rows["log"].values()) == 2000
    assert {split: round(count / 2000, 1) for split, count in rows["log"].items()} == {
        "train": 0.8,
        "valid": 0.1,
        "test": 0.1,
    }


def test_the_recipe_of_two_csv_files_runs_unchanged(two_logs: Path) -> None:
    made_recipe(Path("shop.yaml"), "views=views.csv", "coupons=coupons.csv")
    assert prepared(Path("shop.yaml")) == {
        "views": {"train": 1600, "valid": 200, "test": 200},
        "coupons": {"train": 480, "valid": 60, "test": 60},
    }


def test_a_split_by_time_that_leaves_a_domain_empty_is_not_chosen(tmp_path: Path) -> None:
    table = exposures(400, 20)
    pq.write_table(table, tmp_path / "a.parquet")
    late = [time + timedelta(days=400) for time in table["ts"].to_pylist()]
    pq.write_table(with_columns(table, ts=late).slice(0, 300), tmp_path / "b.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"a={tmp_path}/a.parquet", f"b={tmp_path}/b.parquet")
    assert recipe.split.last_share == {"valid": 0.1, "test": 0.1}
    assert "no two moments leave rows and positives of every domain in every split" in text


def test_names_that_every_data_set_has_are_not_taken(tmp_path: Path) -> None:
    table = exposures(400, 20)
    table = with_columns(table, user=table["user_id"].combine_chunks(), weight=table["price"].combine_chunks())
    pq.write_table(table.drop_columns("user_id"), tmp_path / "log.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert recipe.domains["log"].user == "user"
    assert feature(recipe, "user_2")["value"] == "user"
    assert feature(recipe, "weight_2")["value"] == "weight"


def test_labels_are_never_features_and_what_comes_later_is_left_out(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = with_columns(
        exposures(400, 20),
        bought=[bool(x < 0.5) for x in random.random(400)],
        is_mobile=random.integers(0, 2, 400),
        dwell_time=random.random(400),
        price_paid=random.random(400),
    )
    pq.write_table(table, tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert recipe.domains["log"].labels == {"click": "click", "bought": "bought"}
    columns = [each.column for each in recipe.features]
    assert "is_mobile" in columns
    assert not {"click", "bought", "dwell_time", "price_paid"} & set(columns)
    assert "left out: dwell_time of log looks as if it were known only after the label. QUESTION" in text


def test_ratings_become_a_label_with_a_question(tmp_path: Path) -> None:
    table = with_columns(exposures(400, 20).drop_columns("click"), rating=[1.0 + i % 5 for i in range(400)])
    pq.write_table(table, tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert recipe.domains["log"].labels == {"liked": "rating >= 4"}
    assert feature(recipe, "last_log")["history"]["where"] == "rating >= 4"
    assert "rating" not in [each.column for each in recipe.features]
    assert "# liked: ratings from 1 to 5; 40.00% positive in the sample" in text
    assert "# QUESTION: liked: is 4 the right limit of what counts as positive?" in text


def test_actions_become_a_label_with_a_question(tmp_path: Path) -> None:
    actions = ["view", "view", "addtocart", "transaction"]
    table = with_columns(exposures(400, 20).drop_columns("click"), event=[actions[i % 4] for i in range(400)])
    pq.write_table(table, tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert recipe.domains["log"].labels == {"transaction": "event = 'transaction'"}
    assert "QUESTION: transaction: rows are actions (addtocart, transaction, view)" in text


def test_nulls_of_users_and_times_are_left_out_and_of_labels_allowed(tmp_path: Path) -> None:
    table = exposures(400, 20)
    holes = pa.array([None if i % 10 == 0 else i % 3 == 0 for i in range(400)])
    users = pa.array([None if i == 7 else i % 40 for i in range(400)])
    pq.write_table(with_columns(table, click=holes, user_id=users), tmp_path / "log.parquet")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert recipe.views["log_rows"].endswith("WHERE r.user_id IS NOT NULL")
    assert recipe.domains["log"].nullable == ("click",)
    assert feature(recipe, "last_log")["history"]["where"] == "click"
    assert "or does null mean 0?" in text


def test_users_of_two_names_and_types_are_made_one(tmp_path: Path) -> None:
    table = exposures(400, 20)
    pq.write_table(table, tmp_path / "a.parquet")
    names = [f"{user}" for user in table["user_id"].to_pylist()]
    pq.write_table(with_columns(table, uid=names).drop_columns("user_id").slice(0, 200), tmp_path / "b.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"a={tmp_path}/a.parquet", f"b={tmp_path}/b.parquet")
    assert "CAST(r.user_id AS VARCHAR) AS user_id_text" in recipe.views["a_rows"]
    assert "CAST(r.uid AS VARCHAR) AS user_id_text" in recipe.views["b_rows"]
    assert {domain.user for domain in recipe.domains.values()} == {"user_id_text"}
    assert recipe.features[0].column == "user_id_text"


def test_json_lines_with_lists(tmp_path: Path) -> None:
    table = exposures(200, 20)
    rows = [
        {**row, "ts": row["ts"].isoformat(), "tags": ["a", "b"][: 1 + i % 2]} for i, row in enumerate(table.to_pylist())
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.jsonl")
    assert recipe.inputs["log"].path == f"{tmp_path}/log.jsonl"
    assert feature(recipe, "tags") == {"kind": "bag", "group": "specific", "domains": ("log",)}
    assert recipe.domains["log"].time == "ts"


def test_integers_that_pandas_kept_as_floats_stay_integers(tmp_path: Path) -> None:
    table = exposures(400, 20)
    users = [None if i == 3 else float(i % 40) for i in range(400)]
    items = [float(item) for item in table["item_id"].to_pylist()]
    pq.write_table(with_columns(table, user_id=users, item_id=items), tmp_path / "log.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    assert "CAST(r.user_id AS BIGINT) AS user_id_integer" in recipe.views["log_rows"]
    assert recipe.domains["log"].user == "user_id_integer"
    assert feature(recipe, "item_id")["value"] == "CAST(item_id AS BIGINT)"
    assert feature(recipe, "last_log")["history"]["value"] == "CAST(item_id AS BIGINT)"


def test_roles_of_odd_names_are_quoted(tmp_path: Path) -> None:
    table = exposures(400, 20).rename_columns(
        ["user id", "item-id", "event time", "is click", "category", "price", "device", "age"]
    )
    pq.write_table(table, tmp_path / "log.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    domain = recipe.domains["log"]
    assert (domain.user, domain.time, domain.labels) == ('"user id"', '"event time"', {"is_click": '"is click"'})
    assert feature(recipe, "last_log")["history"]["value"] == '"item-id"'


def test_spark_reads_the_times_of_iso_8601_too(tmp_path: Path) -> None:
    """A T or Z in a format of `strptime` would be a letter of Spark's own patterns."""
    table = exposures(400, 20)
    texts = [time.strftime("%Y-%m-%dT%H:%M:%S.%fZ") for time in table["ts"].to_pylist()]
    pq.write_table(with_columns(table, ts=texts), tmp_path / "log.parquet")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.parquet")
    spark = sqlglot.transpile(recipe.views["log_rows"], read="duckdb", write="spark")[0]
    assert "CAST(r.ts AS TIMESTAMP_NTZ) AS ts_parsed" in spark
    assert recipe.split.valid == "2024-04-10"
