"""What `torchrec-xd init` makes of a column, by its name and values."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_logs import exposures, with_columns
from tests.support.recipes import feature, made_recipe
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init.columns import columns_of
from torchrec_xd.prepare.init.features import Draft, LeftOut, draft
from torchrec_xd.prepare.init.roles import guess_roles

RANDOM = np.random.default_rng(0)
ROWS = 400
BIG = {"vocabulary": {"min_count": 2, "max_rows": 1_000_000}}


def made(name: str, values: Any) -> Draft | LeftOut:
    table = pa.table({name: values if isinstance(values, pa.Array) else pa.array(values)})
    return draft(columns_of(table)[name], of_user=False)


@pytest.mark.parametrize(
    ("name", "values", "content"),
    [
        ("category", [f"c{i % 5}" for i in range(ROWS)], {"kind": "id"}),
        ("brand_id", RANDOM.integers(0, 10**6, 5000).tolist(), {"kind": "id", **BIG}),
        ("rooms", [i % 6 for i in range(ROWS)], {"kind": "id"}),
        (
            "rooms",
            [None if i % 9 == 0 else float(i % 6) for i in range(ROWS)],
            {"value": "CAST(rooms AS BIGINT)", "kind": "id"},
        ),
        ("flag", [i % 3 == 0 for i in range(ROWS)], {"kind": "id"}),
        ("weight_kg", RANDOM.normal(70, 9, ROWS).tolist(), {"kind": "dense", "standard": True}),
        (
            "views",
            [int(x) for x in np.exp(RANDOM.normal(3, 3, ROWS))],
            {"kind": "dense", "log1p": True, "standard": True},
        ),
        (
            "size",
            [None if i % 4 == 0 else i * 0.7 for i in range(ROWS)],
            {"kind": "dense", "standard": True, "missing": "mean", "indicator": True},
        ),
        (
            "size",
            [float("nan") if i % 4 == 0 else i * 0.7 for i in range(ROWS)],
            {
                "value": "CASE WHEN isnan(size) THEN NULL ELSE size END",
                "kind": "dense",
                "standard": True,
                "missing": "mean",
                "indicator": True,
            },
        ),
        ("cost", pa.array([Decimal(i * 7) / 100 for i in range(ROWS)]), {"kind": "dense", "standard": True}),
        ("embedding", [[0.5, 1.5, i / 7] for i in range(ROWS)], {"kind": "vector", "length": 3}),
        (
            "embedding",
            pa.array([[0.5, i / 7] for i in range(ROWS)], pa.list_(pa.float32(), 2)),
            {"kind": "vector", "length": 2},
        ),
        ("tags", [["a", "b"][: i % 3] for i in range(ROWS)], {"kind": "bag"}),
        ("topics", [list(range(i % 4)) for i in range(ROWS)], {"kind": "bag"}),
        ("genres", [["x|y", "y", "x|y|z"][i % 3] for i in range(ROWS)], {"kind": "bag", "separator": "|"}),
        ("sizes", [["S;M", "M;L", "L", "S;M;L"][i % 4] for i in range(ROWS)], {"kind": "bag", "separator": ";"}),
        ("colour", pa.array(["red", "blue"] * 200).dictionary_encode(), {"kind": "id"}),
        ("home city", ["Rome", "Oslo"] * 200, {"value": '"home city"', "kind": "id"}),
    ],
)
def test_features(name: str, values: Any, content: dict[str, Any]) -> None:
    found = made(name, values)
    assert isinstance(found, Draft), found
    column = name.replace(" ", "_")
    assert found.content == {"column": column, **content}


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("source", ["web"] * ROWS, "has one value in the sample, 'web'"),
        ("nothing", [None] * ROWS, "has no values in the sample"),
        ("title", [f"Thing {i}" for i in range(ROWS)], "has a value of its own in almost every row"),
        ("review", [f"a long text of many words {i % 300}" for i in range(ROWS)], "looks like free text, 7 words"),
        ("row_id", list(range(7, 7 + ROWS)), "is different in every row of the sample, like the row's own key"),
        (
            "request_id",
            [f"{i:x}" for i in range(ROWS)],
            "is different in every row of the sample, like the row's own key",
        ),
        ("extra", ['{"a": 1}', '{"a": 2}'] * 200, "looks like JSON in a text"),
        ("scores", [[0.5] * (i % 3) for i in range(ROWS)], "has lists of numbers of changing length"),
        ("place", [{"lat": 1.0}] * ROWS, "is of a type that no feature has (struct<lat: double>)"),
        ("born", [datetime(1990, 1, 1 + i % 28) for i in range(ROWS)], "is a second date"),
    ],
)
def test_columns_that_are_left_out(name: str, values: Any, reason: str) -> None:
    found = made(name, values)
    assert isinstance(found, LeftOut), found
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("names", "user", "item"),
    [
        (["user_id", "item_id"], "user_id", "item_id"),
        (["itemId", "userId"], "userId", "itemId"),
        (["visitorid", "itemid"], "visitorid", "itemid"),
        (["session_id", "customer_no", "sku"], "customer_no", "sku"),
        (["uid", "iid"], "uid", "iid"),
        (["reviewerID", "asin"], "reviewerID", "asin"),
        (["household_key", "campaign_id"], "household_key", "campaign_id"),
        (["device", "user_age", "video_id"], None, "video_id"),
    ],
)
def test_users_and_items_by_name(names: list[str], user: str | None, item: str | None) -> None:
    table = pa.table({name: RANDOM.integers(0, 9, 50) for name in names})
    roles = guess_roles(columns_of(table))
    assert (roles.user and roles.user.column, roles.item and roles.item.column) == (user, item)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["click", "is_mobile"], ["click"]),
        (["is_clicked", "converted", "gender"], ["is_clicked", "converted"]),
        (["isBuy", "hour"], ["isBuy"]),
        (["is_mobile", "gender"], ["is_mobile"]),
        (["added_to_cart", "long_view"], ["added_to_cart", "long_view"]),
    ],
)
def test_labels_by_name(names: list[str], labels: list[str]) -> None:
    table = pa.table({name: RANDOM.integers(0, 2, 50) for name in names})
    assert [label.column for label in guess_roles(columns_of(table)).labels] == labels


def test_the_event_time_is_chosen_among_dates() -> None:
    moments = [datetime(2024, 1, 1 + i % 28) for i in range(50)]
    table = pa.table({"birth_date": moments, "updated_at": moments, "event_time": moments})
    time = guess_roles(columns_of(table)).time
    assert time is not None
    assert time.column == "event_time"


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_lake_tables_are_pinned(tmp_path: Path, kind: str) -> None:
    table = exposures(300, 20)
    if kind == "delta":
        deltalake = pytest.importorskip("deltalake")
        folder = str(tmp_path / "log")
        deltalake.write_deltalake(folder, table.slice(0, 100))
        deltalake.write_deltalake(folder, table.slice(100), mode="append")
        version = 1
    else:
        pytest.importorskip("sqlalchemy")
        sql = pytest.importorskip("pyiceberg.catalog.sql")
        catalog = sql.SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/warehouse")
        catalog.create_namespace("shop")
        lake = catalog.create_table("shop.log", table.schema)
        lake.append(table)
        folder, version = str(lake.location()).removeprefix("file://"), lake.current_snapshot().snapshot_id
    from torchrec_xd.prepare.init import init_recipe
    from torchrec_xd.prepare.recipe import Recipe
    from torchrec_xd.settings import load_yaml, validate

    init_recipe([f"log={folder}"], tmp_path / "x.yaml", lambda line: None)
    recipe = validate(Recipe, load_yaml(tmp_path / "x.yaml"), "x.yaml")
    assert recipe.inputs["log"].model_dump(exclude_unset=True) == {"path": folder, "format": kind, "version": version}
    assert "# 300 rows, 8 columns" in (tmp_path / "x.yaml").read_text()


def test_a_large_log_is_sampled_from_all_of_it(tmp_path: Path) -> None:
    """The times and the number of rows come from footers; texts are read in pieces from start to end."""
    table = exposures(60_000, 500, days=100)
    for i in range(12):
        pq.write_table(table.slice(i * 5000, 5000), tmp_path / f"part{i}.parquet", row_group_size=1000)
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/*.parquet")
    assert "# 60,000 rows, 8 columns" in text
    # A hundred days from the first of March 2024 on.
    assert (recipe.split.valid, recipe.split.test) == ("2024-05-20", "2024-05-30")
    assert "are earlier, by its footers" in text


def test_a_large_csv_is_read_in_pieces(tmp_path: Path) -> None:
    import pyarrow.csv as pa_csv

    table = with_columns(exposures(60_000, 500, days=100), filler=["x" * 100] * 60_000)
    pa_csv.write_csv(table, tmp_path / "log.csv")
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.csv")
    rows = int(text.split("# about ")[1].split(" rows")[0].replace(",", ""))
    assert rows == pytest.approx(60_000, rel=0.05)
    assert recipe.split.valid is not None
    assert "2024-05-1" in recipe.split.valid or "2024-05-2" in recipe.split.valid
    assert feature(recipe, "age")["group"] == "user"
    assert "are earlier, by the sample" in text


def test_of_compressed_text_the_first_rows_are_seen(tmp_path: Path) -> None:
    import gzip

    import pyarrow.csv as pa_csv

    noise = [f"{x:060x}" for x in RANDOM.integers(0, 2**62, 60_000).tolist()]
    pa_csv.write_csv(with_columns(exposures(60_000, 500), noise=noise), tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes(), 1))
    recipe, text = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.csv.gz")
    assert recipe.inputs["log"].path == f"{tmp_path}/log.csv.gz"
    assert "QUESTION: compressed, so that only its first rows were seen" in text


def test_types_that_only_later_rows_show_are_named(tmp_path: Path) -> None:
    import pyarrow.csv as pa_csv

    codes = [str(i % 9) if i < 30_000 else "X7" for i in range(40_000)]
    pa_csv.write_csv(with_columns(exposures(40_000, 50), code=codes), tmp_path / "log.csv")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.csv")
    assert recipe.inputs["log"].types == {"code": "VARCHAR"}


def test_digits_that_begin_with_0_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text(
        "user_id\tzip\tday\tclick\n"
        + "".join(f"{i % 7}\t{i % 5:05d}\t2024-01-{1 + i % 28:02d}\t{i % 2}\n" for i in range(100))
    )
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.tsv")
    log = recipe.inputs["log"]
    assert (log.separator, log.types) == ("\t", {"zip": "VARCHAR"})
    assert recipe.domains["log"].time == "day"


def test_a_csv_without_a_header_has_no_names_to_guess_by(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("".join(f"{i % 7},{i % 5},{i}\n" for i in range(100)))
    with pytest.raises(UserError, match=r"log\.csv: its first line names no columns.*write one above the others"):
        made_recipe(tmp_path / "x.yaml", f"log={tmp_path}/log.csv")
