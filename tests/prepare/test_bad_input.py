"""What is wrong with a recipe or its files: one screen that names line, column and value, and what to write instead."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.raw_shop import goods, likes, prepare, recipe, views, write_shop
from torchrec_xd.errors import UserError

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}
PAST = {"events": "shown", "what": "count", "by": ["user"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("shop"))


def fault_of(folder, content, line_of=None, **options):
    """The message of a recipe that is refused; `line_of` is in the line of the recipe that it names."""
    with pytest.raises(UserError) as error:
        prepare(folder, content, **options)
    message = str(error.value)
    assert len(message) < 1_500, message
    assert not (folder / "out").exists()
    if line_of is not None:
        line = re.search(r"recipe\.yaml:(\d+): ", message)
        assert line, message
        assert line_of in (folder / "recipe.yaml").read_text().splitlines()[int(line[1]) - 1], message
    return message


def changed(content, path, value):
    """A recipe with another value at a path like `domains.goods.user`."""
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


SETTINGS = [
    ("domains.goods.rows", "viewz", "rows: viewz", "'viewz' is not an input or a view; did you mean 'views'?"),
    ("domains.goods.user", "user", "user: user", "'user' is not a column of 'views'; did you mean 'user_id'?"),
    ("domains.goods.tiem", "ts", "tiem: ts", "unknown key 'domains.goods.tiem'; did you mean 'time'?"),
    ("domains.goods.labels.click", "clicked ==", "click: clicked ==", "is no column and no SQL expression"),
    ("domains.goods.labels.click", "clickd", "click: clickd", "did you mean 'clicked'?"),
    ("domains.goods.labels.click", "words", "click: words", "a label is 0, 1, true or false; this is string"),
    ("domains.goods.labels", {}, "labels: {}", "is empty; name what is predicted"),
    ("domains.goods.labels", {"user_id": "clicked"}, "column: user_id", "'user_id' is a feature and a label too"),
    ("domains.goods.nullable", ["clik"], "nullable", "'clik' is not a label; did you mean 'click'?"),
    ("domains.goods.keep", ["click"], "keep", "'click' is a column that is kept and a label too"),
    ("domains.goods.time", ..., "goods:", "rows are split by time: name the column of it, 'time'"),
    ("domains.goods.time", "item", "time: item", "parse it in a view, for example strptime("),
    ("domains.goods.time_unit", "s", "time_unit: s", "belongs to times that are numbers; this column is timestamp"),
    ("domains.videos.time_unit", ..., "time: at", "a number (int64) as time needs 'time_unit'"),
    ("domains.goods.weight", "clicked", "weight: clicked", "have no weight above 0"),
    ("domains.goods.key", ["n"], "key:", "is for choices by hash; this domain keeps all rows"),
    ("split.valid", "2024-13-45", "valid:", "is no date; write 2024-05-31"),
    ("split.valid", "2024-11-20", "test:", "begins before validation"),
    ("split.test", ..., "split:", "valid and test both need their first moment"),
    ("split", {"last_share": {"valid": 0.5}}, "last_share", "a share above 0 for valid and for test"),
    (
        "split",
        {"last_share": {"valid": 0.001, "test": 0.001}},
        "split:",
        "users have too few rows for such a share: raise it, or split by moments (valid, test)",
    ),
    ("split", {"column": "item"}, "column: item", "have another value than train, valid or test"),
    (
        "split",
        {"valid": "2025-01-01", "test": "2025-02-01"},
        "split:",
        "domain 'goods' has no rows for valid; its rows are from 2024-10-",
    ),
    (
        "inputs.views",
        "viewz.parquet",
        "views: viewz.parquet",
        "no Parquet file is there; did you mean 'views.parquet'?",
    ),
    ("inputs.likes.path", "none.csv", "likes:", "no file is there"),
    ("inputs.likes.path", "likes.xyz", "likes:", "Name its 'format', one of: parquet, csv"),
    ("inputs.likes.types", {"likd": "VARCHAR"}, "likes:", "'likd' is not a column; did you mean 'liked'?"),
    ("inputs.likes.columns", ["a", "b"], "columns", "belongs to every CSV file without a header"),
    ("inputs.likes.version", 3, "version: 3", "belongs to Delta and Iceberg tables"),
    ("views", {"views": "SELECT 1"}, "views: SELECT 1", "an input has the same name; rename one"),
    ("views", {"a": "SELECT nope FROM views"}, "a: SELECT nope", 'Referenced column "nope" not found'),
    ("views", {"a": "SELECT * FROM"}, "a: SELECT * FROM", "not valid SQL"),
    ("views", {"a": "DROP TABLE views"}, "a: DROP TABLE", "one SELECT is expected"),
    ("events", {"shown": {"rows": "view", "user": "user_id", "time": "ts"}}, "rows: view", "did you mean 'views'?"),
    ("many_to_many", ["a"], "many_to_many", "'a' is not a view"),
    ("seed", "much", "seed: much", "'seed': Input should be a valid integer"),
]


@pytest.mark.parametrize(("path", "value", "line", "expected"), SETTINGS)
def test_a_wrong_setting(tmp_path, shop, path, value, line, expected):
    content = changed(recipe(shop, goods("item")), path, value)
    assert expected in fault_of(tmp_path, content, line)


def dense(column, **settings):
    return goods(column, "dense", **settings)


FEATURES = [
    (goods("itm"), "column: itm", "'itm' is not a column of 'views'; did you mean 'item'?"),
    (goods("item", domains=["good"]), "domains:", "'good' is not a domain; did you mean 'goods'?"),
    (goods("item", domains=["goods", "videos"]), "domains", "a specific feature is of one domain"),
    (goods("item", group="sequence"), "group: sequence", "kind sequence and group sequence go together"),
    (goods("a.b", value="item"), "column: a.b", "'a.b' is empty or has one of . / \\ @"),
    (goods("user_id"), "column: user_id", "'user_id' is a feature already"),
    (goods("User_ID", value="item"), "column: User_ID", "'User_ID' is a feature already"),
    (goods("item", log1p=True), "log1p: true", "belongs to kind dense; this feature is of kind id"),
    (goods("item", pooling="mean"), "pooling: mean", "belongs to kind bag"),
    (goods("tags", "bag", buckets=[1]), "buckets", "belongs to kind id; this feature is of kind bag"),
    (goods("item", hash=5, as_is=5), "column: item", "in one way, and this feature names hash and as_is"),
    (dense("x", value="price", total=PAST), "column: x", "one source, and this one names value and total"),
    (
        goods("x", total={**PAST, "events": "show"}, buckets=[1]),
        "events: show",
        "'show' is not under 'events'; did you mean 'shown'?",
    ),
    (goods("x", total=PAST), "column: x", "name one of them"),
    (goods("price_step", value="price", buckets=[3, 2]), "buckets", "edges ascend; these are [3.0, 2.0]"),
    (dense("price", clip=[2, 1]), "clip", "these are [2.0, 1.0]"),
    (dense("item"), "column: item", "needs numbers; this is string: cast it in 'value'"),
    (goods("price"), "column: price", "ids are integers or texts; this is float64"),
    (goods("words", "bag"), "column: words", "text with ids in it needs a 'separator'"),
    (goods("tags"), "column: tags", "a id is one value per row; this is array<string>"),
    (goods("taste", "vector", length=4), "length: 4", "rows of 'goods' hold a list of another length than 4"),
    (goods("taste", "vector"), "column: taste", "is missing: every vector has one"),
    (goods("n_", value="n", as_is=7), "as_is: 7", "rows of 'goods' have a value outside [0, 7)"),
    (goods("item", as_is=7), "as_is: 7", "is of integers; this is string"),
    (goods("item", vocabulary={"min_count": 10_000}), "vocabulary", "no value occurs in 10000 training rows"),
    (dense("x", value="price / 0"), "value: price / 0", "are infinite; bound them with 'clip'"),
    (dense("clicked"), "column: clicked", "is made of 'clicked', and so is the label 'click'"),
    (dense("x", value="price * CLICKED"), "value: price", "write 'known_before: true' if the value is known"),
    (dense("x", total={**PAST, "by": ["clicked"]}), "by:", "is made of 'clicked', and so is the label 'click'"),
    (dense("x", value="avg(price) over (partition by item)"), "value: avg", "reads other rows, later ones too"),
    (dense("x", value="price - (select avg(price) from views)"), "value: price", "reads other rows, later ones too"),
    (
        goods("n_", value="n", table="user_id"),
        "column: user_id",
        "its table holds texts and integers (user_id, n_); cast one kind",
    ),
    (goods("item", table="user_id", hash=9), "table: user_id", "make their ids in different ways"),
    (goods("tags", "bag", table="hist"), "table: hist", "is a bag, and 'hist' of the same table 'hist' a sequence"),
    (goods("item", dim=6), "dim: 6", "width 6 is no multiple of 4"),
    (
        dense("x", total={**PAST, "where": "price + 1"}),
        "where: price",
        "is a condition, true or false; this is float64",
    ),
    (dense("x", total={**PAST, "what": "sum", "value": "item"}), "value: item", "adds up numbers; this is string"),
    (dense("x", total={**PAST, "what": "sum"}), "total", "'value' belongs to every total of kind sum or share"),
    (
        goods("h", "sequence", group="sequence", length=3, history={"events": "shown", "value": "price"}),
        "value: price",
        "ids are integers or texts; this is float64",
    ),
]


HIST = goods("hist", "sequence", group="sequence", length=3, history={"events": "shown", "value": "item"})


@pytest.mark.parametrize(("feature", "line", "expected"), FEATURES)
def test_a_wrong_feature(tmp_path, shop, feature, line, expected):
    others = [HIST] if feature.get("table") == "hist" else []
    message = fault_of(tmp_path, recipe(shop, feature, *others, events=EVENTS), line)
    assert expected in message


def test_what_is_known_before_may_be_in_a_label_too(tmp_path, shop):
    content = recipe(shop, dense("price", known_before=True))
    content["domains"]["goods"]["labels"]["click"] = "coalesce(price, 0) > 2"
    assert (prepare(tmp_path, content) / "schema.yaml").is_file()


def rows_with(**changes):
    """Rows of the shop, the third one with other values."""
    rows = views()
    rows[2] |= changes
    return rows


DATA = [
    (
        {"clicked": 2},
        {},
        "click: clicked",
        ["1 rows of 'goods' have another value than 0 and 1, for example 2", "clicked > 0"],
    ),
    ({"clicked": None}, {}, "click: clicked", ["have no value", "'nullable'", "coalesce(clicked, 0)"]),
    ({"user_id": None}, {}, "user: user_id", ["1 rows of 'goods' have no user; leave them out in a view"]),
    ({"ts": None}, {}, "time: ts", ["1 rows of 'goods' have no time; leave them out in a view"]),
    ({"taste": [1.0]}, {}, "length: 3", ["feature 'taste'", "1 rows of 'goods'", "another length than 3"]),
    ({"taste": [1.0, None, 2.0]}, {}, "column: taste", ["hold null, NaN or infinity in the list"]),
]


@pytest.mark.parametrize(("row", "changes", "line", "expected"), DATA)
def test_values_that_mean_nothing(tmp_path, row, changes, line, expected):
    folder = write_shop(tmp_path / "shop", rows_with(**row))
    message = fault_of(tmp_path, recipe(folder, goods("taste", "vector", length=3), **changes), line)
    assert all(part in message for part in expected), message


def test_times_in_another_unit(tmp_path, shop):
    content = changed(recipe(shop), "views", {"b": 'SELECT * REPLACE ("at" * 1000 AS "at") FROM likes'})
    content["domains"]["videos"]["rows"] = "b"
    message = fault_of(tmp_path, content, "time: at")
    assert "160 rows of 'videos' have a time before 1900 or after 2200; are they really s since 1970?" in message


@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_class(tmp_path, label):
    rows = [row | {"clicked": label} if row["ts"].day in (30, 31) or row["ts"].month == 11 else row for row in views()]
    message = fault_of(tmp_path, recipe(write_shop(tmp_path / "shop", rows)), "click: clicked")
    assert f"rows of test is {'negative' if label else 'positive'}; check the condition, or move 'split'" in message


def test_no_rows_at_all(tmp_path, shop):
    events = {"shown": EVENTS["shown"] | {"rows": "none"}}
    empty = {"none": "SELECT * FROM views WHERE n < 0"}
    total = dense("x", total=PAST)
    message = fault_of(tmp_path, recipe(shop, total, views=empty, events=events), "rows: none")
    assert "'events.shown.rows': 'none' has no rows" in message
    content = recipe(shop, views=empty)
    content["domains"]["goods"]["rows"] = "none"
    assert "'none' has no rows" in fault_of(tmp_path, content, "rows: none")


# Files


def parquet(folder, **files):
    for name, table in files.items():
        pq.write_table(table, folder / f"{name}.parquet")


TABLE = pa.Table.from_pylist(views())
FILES = [
    (lambda: TABLE.drop(["price"]), ["b.parquet has no column 'price'", "a.parquet has one"]),
    (lambda: TABLE.set_column(0, "n", TABLE["n"].cast("string")), ["column 'n' is int64 in", "string in"]),
]


@pytest.mark.parametrize(("other", "expected"), FILES)
def test_parquet_files_that_differ(tmp_path, other, expected):
    folder = write_shop(tmp_path / "shop")
    (folder / "logs").mkdir()
    parquet(folder / "logs", a=TABLE, b=other(), c=TABLE)
    message = fault_of(tmp_path, changed(recipe(folder), "inputs.views", "logs"), "views: logs")
    assert all(part in message for part in expected), message


HEADER, LINE = "n,user_id,item,at,liked\n", "{},u1,p1,1729500000,1\n"
CSV_FILES = [
    ({"b": "n,user_id,item,at\n1,u1,p1,1729500000\n"}, ["b.csv has no column 'liked', and", "a.csv has one"]),
    ({"b": "n,item,user_id,at,liked\n" + LINE.format(1)}, ["same columns in the same order"]),
    ({"b": ""}, ["b.csv: is empty"]),
    (
        {"b": (HEADER + "1,Gr\u00fc\u00dfe,p1,1729500000,1\n").encode("latin-1")},
        ["b.csv", "is not UTF-8; convert the file"],
    ),
    ({"b": "Gr\u00fc\u00dfe,user_id\n".encode("latin-1")}, ["b.csv: is not UTF-8; convert the file"]),
    (
        {"b": HEADER + "".join(LINE.format(n) for n in range(30_000)) + "x9,u1,p1,1729500000,1\n"},
        ["b.csv, line 30002: column 'n' holds 'x9', which is no BIGINT", "types: {n: VARCHAR}"],
    ),
    ({"b": HEADER + "1,u1,p1,1729500000,1,7,8\n"}, ["b.csv", "columns"]),
]


@pytest.mark.parametrize(("files", "expected"), CSV_FILES)
def test_csv_files_that_differ(tmp_path, files, expected):
    folder = write_shop(tmp_path / "shop")
    (folder / "logs").mkdir()
    for name, text in {"a": HEADER + LINE.format(5), **files}.items():
        (folder / "logs" / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = fault_of(tmp_path, changed(recipe(folder), "inputs.likes.path", "logs/*.csv"), "likes:")
    assert all(part in message for part in expected), message


def test_files_that_are_none(tmp_path):
    folder = write_shop(tmp_path / "shop")
    (folder / "views.parquet").write_text("no Parquet")
    assert "views.parquet: no readable Parquet file" in fault_of(tmp_path, recipe(folder), "views: views.parquet")
    (folder / "empty").mkdir()
    content = changed(recipe(write_shop(folder)), "inputs.likes", {"path": "empty", "format": "csv"})
    assert "empty: holds no files that end as csv files do" in fault_of(tmp_path, content, "likes:")
    content = changed(recipe(folder), "inputs.views", {"path": "empty", "format": "parquet"})
    assert "empty: no Parquet file is there" in fault_of(tmp_path, content, "views:")


def test_a_query_that_fails_for_a_row(tmp_path, shop):
    content = recipe(shop, goods("x", value="item::INT"))
    message = fault_of(tmp_path, content)
    assert "cannot be computed for some row: Conversion Error: Could not convert string 'p" in message
    assert "try_cast" in message


def test_users_and_keys_of_other_types(tmp_path, shop):
    views_of = {"numbers": "SELECT * REPLACE (1 AS user_id, 2 AS item) FROM views"}
    content = recipe(shop, views=views_of)
    content["domains"]["videos"] |= {"rows": "numbers", "time": "ts", "labels": {"like": "clicked"}}
    del content["domains"]["videos"]["time_unit"]
    assert "users of 'videos' are int32 and those of 'goods' string" in fault_of(tmp_path, content, "user: user_id")
    total = dense("x", total={**PAST, "by": ["item"], "events": "numbers"})
    events = {"numbers": {"rows": "numbers", "user": "user_id::VARCHAR", "time": "ts"}}
    message = fault_of(tmp_path, recipe(shop, total, views=views_of, events=events), "by")
    assert "item of 'numbers' are int32 and those of 'goods' string" in message


# Joins


def items(folder, repeated):
    rows = [{"item": f"p{n}", "color": n % 3} for n in range(20)] + [{"item": "p7", "color": 9}] * repeated
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")


JOINS = [
    "SELECT * FROM views LEFT JOIN items USING (item)",
    "SELECT v.*, i.color FROM views v JOIN items AS i ON v.item = i.item AND i.color > 0",
    "SELECT v.*, i.color FROM views v JOIN items AS i ON i.item = v.item",
    "WITH w AS (SELECT * FROM views JOIN items USING (item)) SELECT * FROM w",
]


@pytest.mark.parametrize("query", JOINS)
def test_a_lookup_table_whose_keys_repeat(tmp_path, query):
    folder = write_shop(tmp_path / "shop")
    items(folder, repeated=2)
    content = recipe(folder, goods("color"), views={"rich": query})
    content["inputs"]["items"] = "items.parquet"
    content["domains"]["goods"]["rows"] = "rich"
    message = fault_of(tmp_path, content, "rich: ")
    assert "the join with 'items' would multiply rows: item 'p7' is in 3 of its rows" in message
    assert "many_to_many: [rich]" in message


@pytest.mark.parametrize(
    ("repeated", "query", "changes"),
    [
        (0, JOINS[0], {}),
        (2, "SELECT * FROM views JOIN (SELECT DISTINCT ON (item) * FROM items) USING (item)", {}),
        (0, "SELECT * FROM items JOIN views USING (item)", {}),
        (2, "SELECT * FROM views SEMI JOIN items USING (item)", {}),
        (2, JOINS[0], {"many_to_many": ["rich"]}),
    ],
)
def test_joins_that_do_not_multiply_rows_or_mean_to(tmp_path, repeated, query, changes):
    folder = write_shop(tmp_path / "shop")
    items(folder, repeated)
    content = recipe(folder, views={"rich": query}, **changes)
    content["inputs"]["items"] = "items.parquet"
    content["domains"]["goods"] |= {"rows": "rich"}
    assert (prepare(tmp_path, content) / "schema.yaml").is_file()


# Recipe files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", r"recipe.yaml:1: not valid YAML"),
        ("- 1\n- 2\n", "recipe.yaml: expected a mapping of settings, got list"),
        ("name: x\nname: y\n", "recipe.yaml:2: key 'name' is written twice"),
        ("name: x\nfeatures:\n- {colum: a}\n", "recipe.yaml:3: unknown key 'features.0.colum'; did you mean 'column'?"),
        ("name: x\n", "'inputs' is required"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, text, expected):
    from torchrec_xd.prepare.api import prepare_recipe

    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        prepare_recipe(tmp_path / "recipe.yaml", tmp_path / "out", print)
    assert expected in str(error.value)


def test_inputs_of_the_command_line(tmp_path, shop):
    message = fault_of(tmp_path, recipe(shop), inputs={"view": "x.parquet"})
    assert "'view' is not an input of" in message
    assert "did you mean 'views'?" in message
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["inputs"]["likes"] == {"path": "likes.csv"}
    assert likes()
