"""Raw logs of a small shop, a recipe for them, and what Python loops make of a past."""

import csv
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from torchrec_xd.prepare.api import prepare_recipe

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2024, 10, 20)
VALID, TEST = datetime(2024, 10, 27, 12), datetime(2024, 10, 30)
DAY = 86_400_000_000
TYPES = pa.schema(
    {
        "n": pa.int64(),
        "user_id": pa.string(),
        "item": pa.string(),
        "category": pa.int32(),
        "price": pa.float64(),
        "ts": pa.timestamp("us"),
        "clicked": pa.int32(),
        "bought": pa.bool_(),
        "tags": pa.list_(pa.string()),
        "words": pa.string(),
        "taste": pa.list_(pa.float32()),
    }
)


def views(count=400, seed=1, users=12):
    """Impressions of items, as dictionaries; some share a user's instant."""
    chance = random.Random(seed)
    found = []
    for n in range(count):
        clicked = int(chance.random() < 0.4)
        found.append(
            {
                "n": n,
                "user_id": f"u{chance.randrange(users)}",
                "item": f"p{int(chance.triangular(0, 20, 3))}",
                "category": chance.choice([None, *range(9)]),
                "price": None if chance.random() < 0.15 else round(chance.lognormvariate(1, 1), 2),
                "ts": START + timedelta(minutes=15 * chance.randrange(4 * 24 * 14)),
                "clicked": clicked,
                "bought": chance.random() < 0.5 if clicked else None,
                "tags": None if chance.random() < 0.1 else chance.choices(["a", "b", "c", None, "dd"], k=n % 4),
                "words": None if chance.random() < 0.1 else "|".join(chance.choices(["x", "y", "", "zz"], k=n % 4)),
                "taste": None if chance.random() < 0.1 else [float(n), -0.5, chance.random()],
            }
        )
    return found


def likes(count=160, seed=2, users=12):
    """Videos shown to the same users, as dictionaries; times are epoch seconds."""
    chance = random.Random(seed)
    return [
        {
            "n": n,
            "user_id": f"u{chance.randrange(users)}",
            "item": f"p{chance.randrange(25)}",
            "at": micros(START + timedelta(minutes=chance.randrange(60 * 24 * 14))) // 1_000_000,
            "liked": int(chance.random() < 0.5),
        }
        for n in range(count)
    ]


def write_shop(folder, view_rows=None, like_rows=None):
    """`views.parquet` and `likes.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(view_rows or views(), TYPES), folder / "views.parquet")
    rows = like_rows or likes()
    with (folder / "likes.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def recipe(folder, *features, **changes):
    """A recipe over the shop's files, as it is written in YAML."""
    return {
        "name": "shop",
        "root": str(folder),
        "inputs": {"views": "views.parquet", "likes": {"path": "likes.csv"}},
        "domains": {
            "goods": {
                "role": "source",
                "rows": "views",
                "user": "user_id",
                "time": "ts",
                "labels": {"click": "clicked"},
                "keep": ["n"],
            },
            "videos": {
                "role": "target",
                "rows": "likes",
                "user": "user_id",
                "time": "at",
                "time_unit": "s",
                "labels": {"like": "liked = 1"},
                "keep": ["n"],
            },
        },
        "features": [{"column": "user_id", "kind": "id", "group": "user"}, *features],
        "split": {"valid": VALID.isoformat(), "test": TEST.isoformat()},
        "time_zone": "Europe/Berlin",
        **changes,
    }


def goods(column, kind="id", **settings):
    """A feature of the domain goods alone."""
    return {"column": column, "kind": kind, "group": "specific", "domains": ["goods"], **settings}


EVERY_KIND = [
    {"column": "item", "kind": "id", "group": "user", "vocabulary": {"min_count": 9, "max_rows": 6}},
    goods("category", vocabulary={"min_count": 1}),
    goods("category_edges", value="category", buckets=[2, 5.5]),
    goods("price_quarter", value="price", quantiles=4),
    goods("price_steps", value="price * 2", log_buckets=16),
    goods("hashed", value="item", hash=50),
    goods("as_is", value="n % 7", as_is=7),
    goods("tags", "bag"),
    goods("tags_order", "sequence", value="tags", group="sequence", length=5),
    goods("words", "bag", separator="|"),
    goods("price", "dense", clip=[0.5, 9], log1p=True, standard=True, missing="mean", indicator=True),
    goods("price_raw", "dense", value="price"),
    goods("taste", "vector", length=3),
    goods("hour", calendar="hour"),
    goods("weekday", calendar="weekday"),
    goods("day", calendar="day"),
    goods("month", calendar="month"),
    goods("hour_of_week", calendar="hour_of_week"),
    goods(
        "clicked_items",
        "sequence",
        group="sequence",
        table="item",
        length=4,
        history={"events": "shown", "value": "item", "where": "clicked = 1"},
    ),
    goods("seen", "dense", total={"events": "shown", "what": "count", "by": ["user"], "days": 2.5}),
    goods("spent", "dense", total={"events": "shown", "what": "sum", "by": ["user"], "value": "price"}),
    goods(
        "since",
        "dense",
        total={"events": "shown", "what": "days_since", "by": ["user"], "where": "clicked = 1"},
        clip=[0, 9],
    ),
    goods("item_share", "dense", total={"events": "shown", "what": "share", "by": ["item"], "value": "clicked"}),
    goods("seen_step", total={"events": "shown", "what": "count", "by": ["user", "item"]}, log_buckets=16),
    goods("share_half", total={"events": "shown", "what": "share", "by": ["user"], "value": "clicked"}, quantiles=2),
]
"""Features of every kind, way and source; `shown` are the events of views."""


def prepare(folder, content, name="out", **options):
    """Run a recipe, and return the folder of its result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    prepare_recipe(path, folder / name, options.pop("progress", lambda _: None), **options)
    return folder / name


def written(out, domain, splits=("train", "valid", "test")):
    """The rows of a domain by `n`, each with its `split`."""
    found = {}
    for split in splits:
        for path in sorted((out / domain / split).glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                assert row["n"] not in found, "written twice"
                found[row["n"]] = {**row, "split": split}
    return found


def contents(folder):
    """Every file below a folder, with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def rows_of_files(out):
    """Every Parquet file below a folder, with its rows in their order."""
    return {
        path.relative_to(out).as_posix(): pq.read_table(path).to_pylist() for path in sorted(out.rglob("*.parquet"))
    }


def micros(moment, zone=BERLIN):
    """Microseconds since 1970 of what a zone's clocks show; of an hour that they show twice the second one."""
    at = moment.replace(tzinfo=zone, fold=1)
    return round((at - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(microseconds=1))


def split_of(time):
    """Of a row at a time in microseconds."""
    return "train" if time < micros(VALID) else "valid" if time < micros(TEST) else "test"


def ranks(values, min_count=1, max_rows=None):
    """Value to its row: by frequency, ties to the smaller one."""
    counts = {value: values.count(value) for value in set(values) if value is not None}
    order = sorted((value for value in counts if counts[value] >= min_count), key=lambda value: (-counts[value], value))
    return {value: place + 1 for place, value in enumerate(order) if max_rows is None or place + 1 < max_rows}
