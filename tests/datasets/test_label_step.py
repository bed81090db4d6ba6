"""`torchrec-xd label`: files in, files out, and errors in the user's words."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.label_logs import CONFIG, LABELS, NAMES, SHOWN, change, labels, run, small_logs
from torchrec_xd.errors import UserError


@pytest.fixture
def logs(tmp_path):
    """A folder and the config of the small logs in it."""
    return small_logs(tmp_path)


def test_labels_and_report(logs):
    output = run(logs)
    folder, _content = logs
    table = pq.read_table(folder / "out" / "labelled" / "shown.parquet")
    assert table.column_names == [*NAMES, "clicked", "page", "wanted_search", "fit_search", "wanted_map", "fit_map"]
    assert [tuple(row.values())[:5] for row in table.to_pylist()] == SHOWN
    # Oslo: everything of kind k in both domains. The unknown town: no action in the target, so nothing fits.
    assert labels(folder / "out" / "labelled" / "shown.parquet") == LABELS
    assert "| all rows | 4 | 75.0 % | 0.0 % | 0.0 % | 25.0 % | 25.0 % | 100.0 % | 25.0 % | 100.0 % |" in output
    text = (folder / "out" / "labels.md").read_text()
    assert "## By town" in text
    assert "| oslo | 3 | 66.7 % | 0.0 % | 0.0 % | 33.3 % |" in text
    assert "| 7 | 2 | 50.0 % | 0.0 % | 0.0 % | 50.0 % |" in text
    assert {path.name for path in (folder / "out").iterdir()} == {"labelled", "labels.md", "labels.html"}


def test_actions_of_a_later_split_are_unknown(logs):
    folder, content = logs
    table = pq.read_table(content["exposures"]).append_column("ends", pa.array([13, 13, 13, 2**64 - 1], pa.uint64()))
    pq.write_table(table, content["exposures"])
    run(logs, columns={**CONFIG["columns"], "until": "ends"})
    rows = pq.read_table(folder / "out" / "labelled" / "shown.parquet").to_pylist()
    assert [(row["wanted_search"], row["wanted_map"]) for row in rows] == [(1, 0), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("location", "below"),
    [
        ("shown", "day=1/part-0.parquet"),
        ("shown/**/*.parquet", "day=1/part-0.parquet"),
        ("shown/day=1", "part-0.parquet"),
        ("shown/*/part-0.parquet", "day=1/part-0.parquet"),
        ("shown/day=1/part-0.parquet", "part-0.parquet"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_locations_are_those_of_the_reader_and_names_are_kept(logs, location, below, scheme):
    folder, content = logs
    (folder / "shown" / "day=1").mkdir(parents=True)
    (folder / "shown.parquet").rename(folder / "shown" / "day=1" / "part-0.parquet")
    run(logs, out="o[u]t*", exposures=f"{scheme}{folder}/{location}", target=f"{scheme}{content['target']}")
    assert [p.name for p in (folder / "o[u]t*" / "labelled").rglob("*.parquet")] == ["part-0.parquet"]
    assert labels(folder / "o[u]t*" / "labelled" / below) == LABELS


def test_files_order_row_groups_and_columns_are_kept(logs):
    folder, content = logs
    rows = pq.read_table(content["exposures"])
    more = {
        "list": pa.array([[1, None], None, [], [3]], pa.list_(pa.int16())),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 4, "b": None}]),
        "moment": pa.array([1, 2, None, 4], pa.timestamp("us", "Europe/Oslo")),
        "coded": pa.array(["u", "v", None, "u"]).dictionary_encode(),
        "nothing": pa.nulls(4),
        "money": pa.array([1, 2, None, 4], pa.decimal128(12, 2)),
        "text.large": pa.array(["a", "b", None, "d"], pa.large_string()),
        "bytes": pa.array([b"\xff", b"", None, b"d"]),
        "small": pa.array([1, 2, None, 255], pa.uint8()),
    }
    fields = [pa.field(name, values.type, metadata={"about": name}) for name, values in more.items()]
    fields.append(pa.field("always", pa.int8(), nullable=False))
    schema = pa.schema([*rows.schema, *fields], metadata={"owner": "me"})
    whole = pa.table([*rows.columns, *more.values(), pa.array([1, 2, 3, 4], pa.int8())], schema=schema)
    (folder / "shown").mkdir()
    order = [3, 0, 2, 1, 0, 3, 3]
    pq.write_table(whole.take(order), folder / "shown" / "b.parquet", row_group_size=3)
    pq.write_table(whole.slice(0, 0), folder / "shown" / "c.parquet")
    pq.write_table(rows.take([1, 0]), folder / "shown" / "a.parquet")
    run(logs, exposures=str(folder / "shown"))
    made = {path.name: path for path in (folder / "out" / "labelled").iterdir()}
    assert sorted(made) == ["a.parquet", "b.parquet", "c.parquet"]
    assert labels(made["a.parquet"]) == [LABELS[1], LABELS[0]]
    assert labels(made["b.parquet"]) == [LABELS[row] for row in order]
    for name, path in made.items():
        old, new = pq.ParquetFile(folder / "shown" / name), pq.ParquetFile(path)
        added = [field.name for field in new.schema_arrow][-4:]
        assert new.read().drop_columns(added).equals(old.read(), check_metadata=True)
        assert [new.schema_arrow.field(column).type for column in added] == [pa.int8()] * 4
        sizes = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in (old, new)]
        assert [size for size in sizes[0] if size] == sizes[1]


def test_the_order_of_actions_does_not_matter(logs):
    folder, content = logs
    for place, path in enumerate([content["target"], *content["sources"].values()]):
        table = pq.read_table(path)
        pq.write_table(table.take([0] * 3), path)
        (folder / f"{place}").mkdir()
        pq.write_table(table.take(list(reversed(range(len(table))))), folder / f"{place}" / "a.parquet")
        pq.write_table(table.take([0, 0]), folder / f"{place}" / "b.parquet", row_group_size=1)
    run(logs, target=str(folder / "0"), sources={"search": str(folder / "1"), "map": str(folder / "2")})
    assert labels(folder / "out" / "labelled" / "shown.parquet") == LABELS


OURS = ("individual", "group_s", "_until", "_found", "_n", "value", "rows", "split", "all", "file_row_number", "_at")
STAGED = (
    "item",
    "user",
    "time",
    "category",
    "scene_0",
    "by_0",
    "acted",
    "until",
    "wanted_0",
    "group_0",
    "Wanted",
    "fit",
)


@pytest.mark.parametrize("start", range(0, len(OURS + STAGED), 3))
def test_names_of_columns_do_not_matter(logs, start):
    """Every name stands for a column with a role and for one without."""
    folder, content = logs
    names = [(OURS + STAGED)[(start + step) % len(OURS + STAGED)] for step in range(9)]
    chosen = dict(zip((*NAMES, "clicked", "page"), names[:7], strict=True))
    for path in (content["exposures"], content["target"], *content["sources"].values()):
        table = pq.read_table(path)
        table = table.rename_columns([chosen[name] for name in table.column_names])
        for name in names[7:]:
            table = table.append_column(name, pa.array(["x"] * len(table)))
        pq.write_table(table, path)
    columns = {key: chosen[name] for key, name in CONFIG["columns"].items() if key != "groups"}
    columns["groups"] = [chosen["town"]]
    run(logs, columns=columns, acted=chosen["clicked"], report_by=[chosen["page"]])
    assert labels(folder / "out" / "labelled" / "shown.parquet") == LABELS
    assert f"| {chosen['page']} | rows |" in (folder / "out" / "labels.md").read_text()


def columns(**changes):
    return {"columns": {**CONFIG["columns"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acted": "bought"}, r"exposures: .*shown\.parquet has no column 'bought' \(acted\); it has: person, thing"),
        ({"target": "nowhere.parquet"}, "target: .*nowhere.parquet: no Parquet file is there"),
        ({"sources": {}}, "sources"),
        (columns(until="ends"), "has no column 'ends'"),
        (columns(groups=["city"]), "has no column 'city'"),
        (columns(until="person", user="thing"), "column 'thing' is in columns.user and columns.item; each has its own"),
        (columns(until="kind"), "column 'kind' is in columns.category and columns.until"),
        (columns(groups=["town", "town"]), "column 'town' is in columns.groups and columns.groups"),
        (columns(groups=["thing"]), "column 'thing' is in columns.item and columns.groups"),
        ({"acted": "day"}, "column 'day' is in columns.time and acted"),
        ({"report_by": ["town"]}, "column 'town' is in columns.groups and report_by"),
        ({"windows": 3}, "unknown key 'windows'"),
        ({"sources": {"": "map.parquet"}}, "source '' is part of a label's name"),
        ({"sources": {"a.b": "map.parquet"}}, "source 'a.b' is part of a label's name, which .* has no dot"),
        ({"sources": {"map": "map.parquet", "Map": "map.parquet"}}, "sources map, Map: some differ in case only"),
        ({"engine": "spark"}, "'label' cannot use engine: spark, which does not keep files and the order of rows"),
        ({"memory_limit_gb": 1e-9}, "DuckDB .*memory"),
        (
            {"memory_limit_gb": 0.002},
            r"DuckDB has too little memory or disk \(Out of Memory.*; raise 'memory_limit",
        ),
        ({"memory_limit_gb": float("inf")}, "'memory_limit_gb': Input should be a finite number"),
        ({"labels": {"window": 10**30}}, "labels.window"),
    ],
)
def test_misuse(logs, changes, message):
    with pytest.raises(UserError, match=message):
        run(logs, **changes)
    assert not (logs[0] / "out").exists()


@pytest.mark.parametrize("name", ["wanted_search", "fit_map", "FIT_map"])
def test_names_that_are_added_are_free(logs, name):
    change(logs[1]["exposures"], "page", name=name)
    with pytest.raises(
        UserError, match=rf"shown\.parquet has a column '{name}', and 'label' adds '{name.lower()}'; rename"
    ):
        run(logs, report_by=[])


def test_every_file_of_a_table_is_checked(logs):
    folder, content = logs
    table = pq.read_table(content["sources"]["search"])
    (folder / "search").mkdir()
    pq.write_table(table, folder / "search" / "a.parquet")
    sources = {"search": str(folder / "search")}
    for other, message in [
        (table.drop_columns(["thing"]), r"b\.parquet has no column 'thing' \(columns\.item\); it has: person, kind"),
        (table.set_column(1, "thing", pa.array(["1", "9"])), r"'thing' .* string in .*b\.parquet .*, and int64 in "),
        (table.append_column("day", table["day"]), r"b\.parquet has column 'day' 2 times; rename or drop one"),
    ]:
        pq.write_table(other, folder / "search" / "b.parquet")
        with pytest.raises(UserError, match=message):
            run(logs, sources=sources)
    (folder / "search" / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"sources\.search: .*b\.parquet: not a readable Parquet file"):
        run(logs, sources=sources)
    table = pq.read_table(content["exposures"])
    pq.write_table(table.append_column("page", table["page"]), content["exposures"])
    with pytest.raises(UserError, match=r"shown\.parquet has column 'page' 2 times"):
        run(logs, report_by=[])


@pytest.mark.parametrize("table", ["exposures", "target"])
def test_a_damaged_row_group_is_named(logs, table):
    path = logs[0] / f"{'shown' if table == 'exposures' else 'clicks'}.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: not a readable Parquet file \(row group 0"):
        run(logs)
    assert not (logs[0] / "out").exists()


def test_no_exposures(logs):
    path = logs[1]["exposures"]
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match=r"exposures: .*shown\.parquet holds no rows; there is nothing to label"):
        run(logs)


def test_an_existing_folder_is_left_alone(logs):
    (logs[0] / "out").mkdir()
    with pytest.raises(UserError, match="exists; name another folder"):
        run(logs)
    assert list((logs[0] / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made(logs):
    with pytest.raises(UserError, match=r"shown\.parquet/out: cannot be written .*name another folder"):
        run(logs, out="shown.parquet/out")
