"""Raw rows to score: each gets one row, in their order, whatever the recipe's views do."""

import random
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_shop import EVERY_KIND, TYPES, prepare, recipe, views, write_shop
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.raw_rows import encode_raw_rows

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
ITEM = {"column": "item", "kind": "id", "group": "user"}


def folder_of(folder, view=None, *features, name="shop", **changes):
    """Encoders of a recipe whose domain goods reads a view `seen`."""
    shop = write_shop(folder / name)
    pq.write_table(
        pa.table({"item": [f"p{i}" for i in range(3000)], "brand": [i % 7 for i in range(3000)]}), shop / "i.pq"
    )
    content = recipe(shop, ITEM, *features, **({"views": {"seen": view}} if view else {}), **changes)
    content["inputs"] |= {"items": "i.pq", "more": "views.parquet"}
    content["domains"]["goods"]["rows"] = "seen" if view else "views"
    return prepare(shop, content)


def raw_rows(folder, count=300, **changes):
    """Rows without labels, of shuffled users and items."""
    found = [{**row, **changes} for row in views(count, seed=7)]
    random.Random(3).shuffle(found)
    path = folder / "new.parquet"
    pq.write_table(pa.Table.from_pylist(found, TYPES).drop_columns(["clicked", "bought"]), path)
    return path, found


def encoded(out, path, folder, **options):
    folder.mkdir()
    return encode_raw_rows(out, str(path), "goods", folder, inputs=options.pop("inputs", {}), **options)


def numbers(found):
    return pq.read_table(found.path)["k_n"].to_pylist()


QUERIES = {
    "a join": "SELECT r.*, k.brand FROM views AS r LEFT JOIN items AS k ON r.item = k.item",
    "named columns": "SELECT n, user_id, v.item, ts, clicked, brand FROM views v JOIN items USING (item)",
    "a subquery": """
        SELECT s.user_id, s.item, s.ts, s.n, clicked FROM (SELECT * FROM views) AS s JOIN items USING (item)""",
    "WITH": "WITH v AS (SELECT * FROM views) SELECT v.*, brand FROM v LEFT JOIN items USING (item)",
    "a union": "SELECT * FROM views UNION ALL SELECT * FROM more",
    "a union of parts": """
        SELECT r.*, brand FROM (SELECT *, 'a' AS part FROM views UNION ALL SELECT *, 'b' AS part FROM more) AS r
        LEFT JOIN items USING (item)""",
    "DISTINCT": "SELECT DISTINCT user_id, item, ts, n, clicked FROM views JOIN items USING (item)",
    "GROUP BY": """
        SELECT n, user_id, item, any_value(ts) AS ts, max(clicked) AS clicked FROM views JOIN items USING (item)
        GROUP BY n, user_id, item""",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_rows_are_in_the_order_of_the_raw_ones(tmp_path, query):
    out = folder_of(tmp_path, query)
    path, raw = raw_rows(tmp_path)
    if "clicked" in query:  # the view names the label
        pq.write_table(pq.read_table(path).append_column("clicked", pa.array([0] * len(raw))), path)
    found = encoded(out, path, tmp_path / "encoded")
    assert numbers(found) == [row["n"] for row in raw]
    assert (found.rows, found.left_out) == (len(raw), 0)
    assert pq.read_table(found.path)["user"].to_pylist() == [row["user_id"] for row in raw]


def test_rows_that_a_view_leaves_out_are_counted(tmp_path):
    out = folder_of(tmp_path, "SELECT * FROM views WHERE price IS NOT NULL")
    path, raw = raw_rows(tmp_path)
    found = encoded(out, path, tmp_path / "encoded")
    left = [row["n"] for row in raw if row["price"] is not None]
    assert numbers(found) == left
    assert found.left_out == len(raw) - len(left) > 10
    assert next(found.remarks()).startswith(f"{found.left_out} of 300 raw rows have no prediction: a condition or join")


def test_rows_that_a_join_multiplies_are_refused(tmp_path):
    out = folder_of(tmp_path, QUERIES["a join"])
    path, _ = raw_rows(tmp_path)
    pq.write_table(pa.table({"item": ["p1", "p1", "p2"], "brand": [1, 2, 3]}), tmp_path / "twice.parquet")
    with pytest.raises(
        UserError, match=r"300 raw rows became 3\d\d: a join in the views of 'goods' finds several rows"
    ):
        encoded(out, path, tmp_path / "encoded", inputs={"items": str(tmp_path / "twice.parquet")})


def test_events_of_activity_alone_are_not_needed(tmp_path):
    activity = {"events": "shown", "what": "count", "by": ["user"]}
    events = {"shown": {"rows": "more", "user": "user_id", "time": "ts"}}
    out = folder_of(tmp_path, events=events, activity=activity)
    path, raw = raw_rows(tmp_path)
    assert numbers(encoded(out, path, tmp_path / "encoded")) == [row["n"] for row in raw]


@pytest.mark.parametrize("name", ["dt=2024-05-31", "x[1]", "item=3"])
def test_folders_may_be_called_anything(tmp_path, name):
    """Daily folders are called `dt=…`; two totals over all users are joined to the rows."""
    wanted = ("clicked_items", "item_share", "seen_step")
    totals = [each for each in EVERY_KIND if each["column"] in wanted]
    by_category = totals[1] | {"column": "by_category", "total": {**totals[1]["total"], "by": ["category"]}}
    out = folder_of(tmp_path, None, *totals, by_category, name=name, events=EVENTS)
    path, raw = raw_rows(tmp_path)
    (tmp_path / name / "scores").mkdir()
    assert numbers(encoded(out, path, tmp_path / name / "scores" / "dt=1")) == [row["n"] for row in raw]


def test_the_format_of_other_files_is_their_own(tmp_path):
    """The recipe's input is a CSV with types; raw rows are CSV without its label, or Parquet."""
    shop = write_shop(tmp_path / "shop")
    start = datetime(2024, 10, 20)
    rows = ["who;what;when;clicked"]
    rows += [f"00{i % 7};p{i % 5};{start + timedelta(hours=i)};{i % 3 == 0:d}" for i in range(330)]
    (shop / "log.csv").write_text("\n".join(rows))
    content = recipe(shop)
    types = {"who": "VARCHAR", "clicked": "INTEGER"}
    content["inputs"]["log"] = {"path": "log.csv", "separator": ";", "types": types}
    content["domains"] = {
        "log": {"role": "target", "rows": "log", "user": "who", "time": "when", "labels": {"click": "clicked = 1"}}
    }
    content["features"] = [{"column": "what", "kind": "id", "group": "user"}]
    out = prepare(shop, content)
    new = [("007", "p1", datetime(2024, 11, 5)), ("001", "p2", datetime(2024, 11, 6))]
    columns = {name: [row[i] for row in new] for i, name in enumerate(("who", "what", "when"))}
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    (tmp_path / "new.csv").write_text("\n".join(["who;what;when", *(";".join(map(str, row)) for row in new)]))
    (tmp_path / "new.log").write_text((tmp_path / "new.csv").read_text())
    for name in ("new.parquet", "new.csv", "new.log"):
        place = tmp_path / f"of_{name}"
        place.mkdir()
        found = pq.read_table(encode_raw_rows(out, str(tmp_path / name), "log", place, inputs={}).path)
        assert found["user"].to_pylist() == ["007", "001"], name
    with pytest.raises(UserError, match=r"'lgo' is not an input of .*; did you mean 'log'"):
        encode_raw_rows(out, str(tmp_path / "new.csv"), "log", tmp_path, inputs={"lgo": "x.csv"})
