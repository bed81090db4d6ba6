"""`torchrec-xd label`: files in, files out, and errors in the user's words."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from torchrec_xd.cli.app import app
from torchrec_xd.errors import UserError

NAMES = ("person", "thing", "kind", "day", "town")
CONFIG = {
    "acted": "clicked",
    "columns": {"user": "person", "item": "thing", "category": "kind", "time": "day", "groups": ["town"]},
    "labels": {"window": 3, "support": 0, "smoothing": 0},
    "report_by": ["page"],
}


def write(path, rows, **more):
    columns = dict(zip(NAMES, (list(column) for column in zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, **more}), path)
    return str(path)


@pytest.fixture
def logs(tmp_path):
    """Ada wanted thing 1 in both sources; she clicked its kind on the page; Bob did nothing; towns may be null."""
    shown = [
        ("ada", 1, "k", 10, "oslo"),
        ("bob", 1, "k", 10, None),
        ("ada", 2, None, 10, "oslo"),
        ("ada", 1, "k", 20, "oslo"),
    ]
    content = {
        **CONFIG,
        "exposures": write(tmp_path / "shown.parquet", shown, clicked=[1, 0, 0, 0], page=[7, 7, 8, 8]),
        "target": write(tmp_path / "clicks.parquet", [("ada", 1, "k", 10, "oslo")]),
        "sources": {
            "search": write(tmp_path / "search.parquet", [("ada", 1, "k", 12, "oslo"), ("eve", 9, "z", 12, None)]),
            "map": write(tmp_path / "map.parquet", [("ada", 1, "k", 13, "oslo")]),
        },
    }
    return tmp_path, content


def run(logs, **changes):
    folder, content = logs
    (folder / "labels.yaml").write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    done = CliRunner().invoke(app, ["label", str(folder / "labels.yaml"), "--out", str(folder / "out")])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_labels_and_report(logs):
    output = run(logs)
    folder, _content = logs
    table = pq.read_table(folder / "out" / "labelled.parquet")
    assert table.column_names == [*NAMES, "clicked", "page", "wanted_search", "fit_search", "wanted_map", "fit_map"]
    rows = {(r["person"], r["thing"], r["day"]): r for r in table.to_pylist()}
    assert len(rows) == 4
    found = {key: tuple(row[n] for n in table.column_names[7:]) for key, row in rows.items()}
    # Oslo: everything of kind k in both domains. The unknown town: no action in the target, so nothing fits.
    assert found == {
        ("ada", 1, 10): (1, 1, 1, 1),
        ("bob", 1, 10): (0, 0, 0, 0),
        ("ada", 2, 10): (0, 0, 0, 0),
        ("ada", 1, 20): (0, 1, 0, 1),
    }
    assert "| all rows | 4 | 75.0 % | 0.0 % | 0.0 % | 25.0 % | 25.0 % | 100.0 % | 25.0 % | 100.0 % |" in output
    text = (folder / "out" / "labels.md").read_text()
    assert "## By town" in text
    assert "| 7 | 2 | 50.0 % | 0.0 % | 0.0 % | 50.0 % |" in text
    assert {path.name for path in (folder / "out").iterdir()} == {"labelled.parquet", "labels.md", "labels.html"}


def test_actions_of_a_later_split_are_unknown(logs):
    folder, content = logs
    table = pq.read_table(content["exposures"]).append_column("ends", pa.array([13, 13, 13, 99]))
    pq.write_table(table, content["exposures"])
    run(logs, columns={**CONFIG["columns"], "until": "ends"})
    rows = pq.read_table(folder / "out" / "labelled.parquet").to_pylist()
    [row] = [row for row in rows if (row["person"], row["thing"], row["day"]) == ("ada", 1, 10)]
    assert (row["wanted_search"], row["wanted_map"]) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acted": "bought"}, r"exposures: .*shown\.parquet has no column 'bought'; it has: person, thing"),
        ({"target": "nowhere.parquet"}, "target: nowhere.parquet cannot be read as Parquet"),
        ({"sources": {}}, "sources"),
        ({"columns": {**CONFIG["columns"], "until": "ends"}}, "has no column 'ends'"),
        ({"columns": {**CONFIG["columns"], "groups": ["city"]}}, "has no column 'city'"),
        ({"windows": 3}, "unknown key 'windows'"),
    ],
)
def test_misuse(logs, changes, message):
    with pytest.raises(UserError, match=message):
        run(logs, **changes)
    assert not (logs[0] / "out").exists()


def test_an_existing_folder_is_left_alone(logs):
    (logs[0] / "out").mkdir()
    with pytest.raises(UserError, match="exists; name another folder"):
        run(logs)
    assert list((logs[0] / "out").iterdir()) == []
