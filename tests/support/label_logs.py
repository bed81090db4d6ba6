"""Small logs for `torchrec-xd label`, and how it is run."""

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from typer.testing import CliRunner

from torchrec_xd.cli.app import app

NAMES = ("person", "thing", "kind", "day", "town")
CONFIG = {
    "acted": "clicked",
    "columns": {"user": "person", "item": "thing", "category": "kind", "time": "day", "groups": ["town"]},
    "labels": {"window": 3, "support": 0, "smoothing": 0},
    "report_by": ["page"],
}
SHOWN = [
    ("ada", 1, "k", 10, "oslo"),
    ("bob", 1, "k", 10, None),
    ("ada", 2, None, 10, "oslo"),
    ("ada", 1, "k", 20, "oslo"),
]
LABELS = [(1, 1, 1, 1), (0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 1)]
"""Their wanted_search, fit_search, wanted_map, fit_map."""


def write(path, rows, **more):
    columns = dict(zip(NAMES, (list(column) for column in zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, **more}), path)
    return str(path)


def small_logs(folder):
    """Ada wanted thing 1 in both sources; she clicked its kind on the page; Bob did nothing; towns may be null."""
    content = {
        **CONFIG,
        "exposures": write(folder / "shown.parquet", SHOWN, clicked=[1, 0, 0, 0], page=[7, 7, 8, 8]),
        "target": write(folder / "clicks.parquet", [("ada", 1, "k", 10, "oslo")]),
        "sources": {
            "search": write(folder / "search.parquet", [("ada", 1, "k", 12, "oslo"), ("eve", 9, "z", 12, None)]),
            "map": write(folder / "map.parquet", [("ada", 1, "k", 13, "oslo")]),
        },
    }
    return folder, content


def run(logs, out="out", **changes):
    folder, content = logs
    (folder / "labels.yaml").write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    done = CliRunner().invoke(app, ["label", str(folder / "labels.yaml"), "--out", str(folder / out)])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def change(path, column, values=None, name=None):
    """Replace a column of a file by other values, or give it another name."""
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, name or column, table[column] if values is None else values), path)


def labels(path):
    """The last four columns of a labelled file."""
    return [tuple(row.values())[-4:] for row in pq.read_table(path, partitioning=None).to_pylist()]
