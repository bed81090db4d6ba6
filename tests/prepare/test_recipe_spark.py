"""A recipe with everything, on DuckDB, on Spark in this process and on a cluster: the same rows and encoders."""

import json
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.layouts import recbole
from tests.support.raw_journey import varied, write_raw
from tests.support.raw_shop import goods, likes, micros, prepare, recipe, views, write_shop
from tests.support.spark import spark_engine
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.api import prepare_recipe
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.shipped import find_config

VIEWS = views(300)
ITEMS = sorted({row["item"] for row in VIEWS})
SHOWN = """
SELECT v.*, v.tags AS kept_tags, i.brand AS "Brand", i.facts.size AS size,
  n - 150 AS signed, nullif(size, 3) / 2 AS half, Brand || '-' AS dashed
FROM views v LEFT JOIN items i ON v.item = i.item
"""
VISITED = """
SELECT user_id, item_id, words, make_timestamp(CAST(seconds AS BIGINT) * 1000000) AS ts FROM visits WHERE seconds > 0
"""


def total(what, by, events="shown", **settings):
    return {"total": {"events": events, "what": what, "by": by, **settings}}


def history(value, events="shown", **settings):
    return {"kind": "sequence", "group": "sequence", "history": {"events": events, "value": value, **settings}}


FEATURES = [
    {"column": "item", "kind": "id", "group": "user", "vocabulary": {"min_count": 5, "max_rows": 12}},
    goods("category", vocabulary={"min_count": 1}),
    goods("maker", value="Brand"),
    goods("cased", value="upper(Brand) || CASE WHEN size > 2 THEN '!' ELSE '' END"),
    goods("size_edges", value="size", buckets=[1, 2.5]),
    goods("price_quarter", value="price", quantiles=4),
    goods("price_steps", value="price * 2", log_buckets=16),
    goods("hashed", value="item", hash=50),
    goods("number", value="signed", hash=1000),
    goods("truncated", value="CAST(price * 10 AS BIGINT)", hash=1000),
    goods("rest", value="signed % 7"),
    goods("parts", value="signed // 7"),
    goods("as_is", value="n % 7", as_is=7),
    goods("tags", "bag"),
    goods("tags_order", "sequence", value="tags", group="sequence", length=5),
    goods("words", "bag", separator="|"),
    goods("price", "dense", clip=[0.5, 9], log1p=True, standard=True, missing="mean", indicator=True),
    goods("ratio", "dense", value="price / (size - 1)", clip=[-9, 9], log1p=True, standard=True),
    goods("half", "dense", missing="mean"),
    goods("clicked_before", "dense", value="CASE WHEN bought THEN 'nan'::DOUBLE ELSE 1 END", known_before=True),
    goods("taste", "vector", length=3),
    {"column": "hour", "kind": "id", "group": "context", "calendar": "hour"},
    goods("weekday", calendar="weekday"),
    goods("day", calendar="day"),
    goods("month", calendar="month"),
    goods("hour_of_week", calendar="hour_of_week"),
    {"column": "clicked_items", **history("item", where="clicked = 1"), "table": "item", "length": 4},
    {"column": "clicked_brands", **history("Brand", where="clicked = 1"), "table": "maker", "length": 4},
    {"column": "visited", **history("item_id", "visited"), "length": 3},
    {"column": "seen", "kind": "dense", "group": "user", **total("count", ["user"], days=2.5), "log1p": True},
    {"column": "visits", "kind": "id", "group": "user", **total("count", ["user"], "visited"), "log_buckets": 8},
    goods("spent", "dense", **total("sum", ["user"], value="price"), standard=True),
    goods("since", "dense", **total("days_since", ["user"], where="clicked = 1"), missing="mean", indicator=True),
    goods("item_share", "dense", **total("share", ["item"], value="clicked"), missing="mean"),
    goods("item_week", "dense", **total("count", ["item"], days=7)),
    goods("fit", "dense", **total("sum", ["user", "category"], value="price * 2", where="price > 1")),
    goods("share_half", **total("share", ["user"], value="clicked"), quantiles=2),
]


def write_files(folder):
    """The shop, facts of its items as JSON lines, and visits as an atomic file."""
    write_shop(folder, VIEWS, likes(120))
    chance = random.Random(3)
    facts = [
        {"item": item, "brand": chance.choice(["Ä", "b", None]), "facts": {"size": chance.randrange(5)}}
        for item in ITEMS[1:]
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, facts)) + "\n", encoding="utf-8")
    lines = ["user_id:token\titem_id:token\tseconds:float\twords:token_seq"]
    for _ in range(200):
        row = chance.choice(VIEWS)
        at = micros(row["ts"]) // 1_000_000 + chance.choice([0, 60, 86_400])
        lines.append(f"{row['user_id']}\t{chance.choice(ITEMS)}\t{at}\t{chance.choice(['a b', '', 'c'])}")
    (folder / "visits.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("shop"))


def run(shop, name, engine="duckdb", features=()):
    content = recipe(shop, *FEATURES, *features, cold_users=0.1, engine=engine)
    content["inputs"] |= {"items": "items.jsonl", "visits": "visits.inter"}
    content["views"] = {"shown": SHOWN, "visited": VISITED}
    content["domains"]["goods"] |= {
        "rows": "shown",
        "labels": {"click": "clicked", "buy": "bought"},
        "nullable": ["buy"],
        "keep_negatives": 0.5,
        "keep": ["n", "Brand", "ts", "kept_tags"],
    }
    content["events"] = {
        "shown": {"rows": "shown", "user": "user_id", "time": "ts"},
        "visited": {"rows": "visited", "user": "user_id", "time": "ts"},
    }
    return prepare(shop, content, name)


@pytest.fixture(scope="module")
def expected(shop):
    return run(shop, "duckdb")


def assert_same(found, expected):
    """Rows with their types, in their order within files; encoders and schema."""
    for path in sorted(expected.glob("*/*/*.parquet")):
        (own,) = (found / path.relative_to(expected).parent).glob("*.parquet")  # one bucket of users
        want, got = pq.read_table(path), pq.read_table(own)
        assert types(got) == types(want), path
        different = [name for name in want.column_names if got[name].to_pylist() != want[name].to_pylist()]
        assert not different, (
            path,
            {name: (got[name].to_pylist()[:9], want[name].to_pylist()[:9]) for name in different},
        )
    assert {path.parent.relative_to(found) for path in found.glob("*/*/*.parquet")} == {
        path.parent.relative_to(expected) for path in expected.glob("*/*/*.parquet")
    }
    names = sorted(path.name for path in (expected / "encoders").iterdir())
    assert sorted(path.name for path in (found / "encoders").iterdir()) == names
    for name in names:
        if name.endswith(".parquet"):
            assert (found / "encoders" / name).read_bytes() == (expected / "encoders" / name).read_bytes(), name
    assert learnt(found) == learnt(expected)
    assert schema(found) == schema(expected)


def types(table):
    """Names and types of columns; whether an entry of a list can be null is not compared."""
    return [(field.name, str(field.type).replace(" not null", "")) for field in table.schema]


def learnt(folder):
    content = json.loads((folder / "encoders" / "encoders.json").read_text(encoding="utf-8"))
    assert content.pop("recipe_sha256")  # the recipe names its engine
    return content


def schema(folder):
    content = yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))
    assert content.pop("root") == str(folder)
    return content


@pytest.mark.slow
def test_spark_in_this_process(shop, expected):
    engine = spark_engine("local[2]").model_dump(exclude_none=True)
    assert_same(run(shop, "local", engine), expected)


@pytest.mark.slow
def test_a_cluster(shop, expected, cluster):
    engine = spark_engine(cluster).model_dump(exclude_none=True)
    assert_same(run(shop, "cluster", engine), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cj_feed", "ml_100k"])
def test_the_shipped_recipes(tmp_path, monkeypatch, local_spark, name):
    monkeypatch.chdir(tmp_path)
    raw = varied(4)
    raw["demographics"] = [{name: value or "?" for name, value in row.items()} for row in raw["demographics"]]
    write_raw(raw, tmp_path / "cj")
    recbole(tmp_path / "data" / "ml-100k-raw", "ml-100k", rows=4000)
    shutil.copy(find_config(f"recipes/{name}"), "recipe.yaml")
    root = ["root=cj"] if name == "cj_feed" else []
    for engine in (EngineSettings(), local_spark):
        words = [*root, f"engine={json.dumps(engine.model_dump(exclude_none=True))}"]
        prepare_recipe(Path("recipe.yaml"), tmp_path / engine.engine, str, assignments=words)
    assert_same(tmp_path / "spark", tmp_path / "duckdb")


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (goods("lucky", value="hash(n)"), r"features.\d+.value': hash\(\) has other values on Spark"),
        (
            goods("some", "dense", **total("count", ["user"], where="words[1:2] = 'x'")),
            r"features.\d+.total.where': \[a:b\]",
        ),
    ],
)
def test_what_spark_computes_otherwise_is_refused_before_it_starts(tmp_path, feature, said):
    with pytest.raises(UserError, match=rf"recipe.yaml:\d+: '{said}"):
        run(tmp_path, "out", {"spark": {"master": "spark://nowhere:1"}}, [feature])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
