"""`torchrec-xd init --format`: known data sets. The files here have their layout, and made-up values."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tests.support.layouts import FIRST, RANDOM, integers, lines, ratings, recbole
from tests.support.recipes import feature, made_recipe, prepared
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init import init_recipe
from torchrec_xd.prepare.inputs import ENDINGS


def test_recbole(tmp_path: Path) -> None:
    recbole(tmp_path / "ml-100k", "ml-100k")
    recipe, text = made_recipe(tmp_path / "x.yaml", str(tmp_path / "ml-100k"), layout="recbole")
    assert {name: domain.role for name, domain in recipe.domains.items()} == {"ml_100k": "target"}
    assert list(recipe.inputs) == ["ml_100k", "ml_100k_items", "ml_100k_users"]
    assert recipe.domains["ml_100k"].labels == {"liked": "rating >= 4"}
    assert (recipe.domains["ml_100k"].time, recipe.domains["ml_100k"].time_unit) == ("timestamp", "s")
    assert feature(recipe, "class") == {"kind": "bag", "group": "specific", "domains": ("ml_100k",)}
    assert {feature(recipe, name)["group"] for name in ("age", "gender", "occupation", "zip_code")} == {"user"}
    assert "RecBole: one data set is one domain; name several for source and target" in text
    assert f"init {tmp_path}/ml-100k --format recbole --out" in text


def test_two_data_sets_of_recbole_are_two_domains(tmp_path: Path) -> None:
    recbole(tmp_path / "books", "books", rows=900)
    recbole(tmp_path / "films", "films")
    inputs = [f"books={tmp_path}/books", f"films={tmp_path}/films"]
    recipe, _ = made_recipe(tmp_path / "x.yaml", *inputs, layout="recbole")
    assert {name: domain.role for name, domain in recipe.domains.items()} == {"books": "source", "films": "target"}
    assert "JOIN films_items" in recipe.views["films_rows"]
    assert "books_items" not in recipe.views["films_rows"]


def test_movielens_of_csv_files(tmp_path: Path) -> None:
    lines(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp", ratings())
    movies = [
        [i, f'"Film {i}, The (19{i + 40})"', ["Comedy|Drama", "Drama", "War|Action"][i % 3]] for i in range(1, 41)
    ]
    lines(tmp_path / "movies.csv", "movieId,title,genres", movies)
    recipe, text = made_recipe(tmp_path / "x.yaml", f"films={tmp_path}", layout="movielens")
    assert recipe.views["films_rows"].endswith("FROM films AS r\nLEFT JOIN movies AS k0 ON r.movieId = k0.movieId")
    assert feature(recipe, "genres")["separator"] == "|"
    assert "title" not in [each.column for each in recipe.features]
    assert feature(recipe, "last_films")["history"]["where"] == "rating >= 4"
    assert "MovieLens: a single domain of ratings" in text
    rows = prepared(tmp_path / "x.yaml")["films"]
    assert sum(rows.values()) == 600
    assert rows["train"] == pytest.approx(480, abs=10)


def test_movielens_100k(tmp_path: Path) -> None:
    lines(tmp_path / "u.data", None, ratings(), "\t")
    lines(tmp_path / "u.user", None, [[i, 20 + i % 9, "MF"[i % 2], "other", f"{i:05d}"] for i in range(1, 61)], "|")
    items = [[i, f"Film {i} (1990)", "01-Jan-1990", "", "http://x", *integers(0, 2, 19)] for i in range(1, 41)]
    lines(tmp_path / "u.item", None, items, "|")
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"films={tmp_path}", layout="movielens")
    log = recipe.inputs["films"]
    assert (log.format, log.separator, log.header) == ("csv", "\t", False)
    assert log.columns == ("user_id", "item_id", "rating", "timestamp")
    assert recipe.inputs["users"].types["zip_code"] == "VARCHAR"
    assert feature(recipe, "Film_Noir") == {"kind": "id", "group": "specific", "domains": ("films",)}
    (tmp_path / "u.item").write_bytes((tmp_path / "u.item").read_bytes().replace(b"Film 3", b"Caf\xe9"))
    recipe, text = made_recipe(tmp_path / "x.yaml", f"films={tmp_path}", layout="movielens")
    assert "movies" not in recipe.inputs
    assert "QUESTION: u.item is Latin-1 and not read; convert it" in text


def test_criteo(tmp_path: Path) -> None:
    rows = [
        [
            int(RANDOM.random() < 0.3),
            *["" if x < 1 else x for x in integers(0, 200, 13)],
            *(f"{x:08x}" for x in integers(0, 30, 26)),
        ]
        for _ in range(800)
    ]
    lines(tmp_path / "train.txt", None, rows, "\t")
    recipe, text = made_recipe(tmp_path / "x.yaml", str(tmp_path / "train.txt"), layout="criteo")
    assert list(recipe.domains) == ["train"]
    assert recipe.domains["train"].labels == {"click": "label"}
    assert recipe.inputs["train"].columns is not None
    assert recipe.inputs["train"].columns[:2] == ("label", "I1")
    assert len(recipe.inputs["train"].columns) == 40
    dense = {"kind": "dense", "log1p": True, "standard": True, "missing": "mean", "indicator": True}
    assert feature(recipe, "I3") == {**dense, "group": "specific", "domains": ("train",)}
    assert feature(recipe, "C26")["vocabulary"] == {"min_count": 10}
    assert recipe.split.column == "split_by_hash"
    assert "Criteo: a single domain without users and times" in text


def test_avazu(tmp_path: Path) -> None:
    names = [
        "site_id",
        "site_domain",
        "site_category",
        "app_id",
        "app_domain",
        "app_category",
        "device_id",
        "device_ip",
    ]
    header = ["id", "click", "hour", "C1", "banner_pos", *names, "device_model", "device_type", "device_conn_type"]
    header += [f"C{i}" for i in range(14, 22)]
    rows: list[list[object]] = []
    for i in range(600):
        hashes = [f"{x:08x}" for x in integers(0, 30, 9)]
        day, hour = divmod(i * 240 // 600, 24)
        rows.append(
            [1_000_000 + i, int(RANDOM.random() < 0.3), f"1410{21 + day}{hour:02d}", *integers(0, 7, 2), *hashes]
        )
        rows[-1] += integers(0, 5, 10)
    lines(tmp_path / "train", ",".join(header), rows)
    recipe, _ = made_recipe(tmp_path / "x.yaml", f"ads={tmp_path}/train", layout="avazu")
    assert "strptime(CAST(r.hour AS VARCHAR), '%y%m%d%H') AS hour_parsed" in recipe.views["ads_rows"]
    assert recipe.domains["ads"].user == "device_ip"
    # Ten days from the 21st of October 2014 on.
    assert (recipe.split.valid, recipe.split.test) == ("2014-10-29", "2014-10-30")
    assert feature(recipe, "C14")["kind"] == "id"
    assert not {"id", "hour_parsed"} & {each.column for each in recipe.features}


def test_aliexpress(tmp_path: Path) -> None:
    header = ["search_id", *(f"categorical_{i}" for i in range(1, 17)), *(f"numerical_{i}" for i in range(1, 64))]
    for country, rows in (("NL", 900), ("US", 300)):
        for part in ("train", "test"):
            values = [
                [
                    int(RANDOM.integers(0, 80)),
                    *integers(0, 5, 16),
                    *RANDOM.random(63).round(3),
                    click,
                    click * int(i % 2),
                ]
                for i, click in enumerate(integers(0, 2, rows))
            ]
            path = tmp_path / f"AliExpress_{country}" / f"{part}.csv"
            lines(path, ",".join([*header, "click", "conversion"]), values)
    recipe, text = made_recipe(tmp_path / "x.yaml", str(tmp_path), layout="aliexpress")
    assert {name: domain.role for name, domain in recipe.domains.items()} == {"nl": "source", "us": "target"}
    assert recipe.domains["us"].labels == {"click": "click", "conversion": "conversion"}
    assert "UNION ALL SELECT *, 'us_test' AS part FROM us_test" in recipe.views["us_rows"]
    assert feature(recipe, "categorical_5") == {"kind": "id", "group": "shared"}
    assert feature(recipe, "numerical_63") == {"kind": "dense", "group": "shared", "standard": True}
    assert "part" not in [each.column for each in recipe.features]
    assert "AliExpress: a domain for each country" in text
    with duckdb.connect() as engine:
        for name in ("nl", "nl_test"):
            engine.execute(f"CREATE VIEW {name} AS FROM '{recipe.inputs[name].path}'")
        query = f"SELECT split_by_hash, count(*) FROM ({recipe.views['nl_rows']}) GROUP BY 1"
        rows: dict[str, int] = dict(engine.execute(query).fetchall())
    assert rows["test"] == 900
    assert rows["valid"] == pytest.approx(90, abs=40)


def test_kuairand(tmp_path: Path) -> None:
    outcomes = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"]
    after = [
        "play_time_ms",
        "duration_ms",
        "profile_stay_time",
        "comment_stay_time",
        "is_profile_enter",
        "is_rand",
        "tab",
    ]
    header = ",".join(["user_id", "video_id", "date", "hourmin", "time_ms", *outcomes, *after])
    for name, rows, start in (
        ("log_standard_4_08_to_4_21_1k", 400, 0),
        ("log_standard_4_22_to_5_08_1k", 400, 400),
        ("log_random_4_22_to_5_08_1k", 300, 400),
    ):
        values = [
            [
                *(*integers(0, 50, 1), *integers(0, 60, 1), 20220422, 1300, (FIRST + (start + i) * 3600) * 1000),
                *(*integers(0, 2, 7), *integers(0, 9000, 4), 0, int("random" in name), *integers(0, 12, 1)),
            ]
            for i in range(rows)
        ]
        lines(tmp_path / "data" / f"{name}.csv", header, values)
    header = "user_id,user_active_degree,is_lowactive_period,follow_user_num,follow_user_num_range,register_days,"
    header += "onehot_feat0"
    users = [
        [i, ["high_active", "UNKNOWN"][i % 2], 0, i * 3, ["0", "(10,50]"][i % 2], 100 + i, i % 2] for i in range(50)
    ]
    rows_of = [[f'"{value}"' if "," in str(value) else value for value in row] for row in users]
    lines(tmp_path / "data" / "user_features_1k.csv", header, rows_of)
    header = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_id,tag"
    videos = [
        [i, i % 9, "NORMAL", "2022-04-09", ["Web", "Kmovie"][i % 2], 0, 9000 + i, i % 4, f'"{i % 7},{i % 5}"']
        for i in range(60)
    ]
    lines(tmp_path / "data" / "video_features_basic_1k.csv", header, videos)
    recipe, text = made_recipe(tmp_path / "x.yaml", str(tmp_path), layout="kuairand")
    assert {name: domain.role for name, domain in recipe.domains.items()} == {"standard": "source", "random": "target"}
    assert list(recipe.inputs) == ["standard", "random", "users", "videos"]
    assert recipe.domains["random"].time_unit == "ms"
    assert set(recipe.domains["random"].labels) == {"is_click", "is_like", "long_view"}
    assert recipe.time_zone == "Asia/Shanghai"
    assert feature(recipe, "video_id") == {"kind": "id", "group": "shared"}
    assert feature(recipe, "follow_user_num_range")["group"] == "user"
    assert feature(recipe, "tag")["separator"] == ","
    assert not {"play_time_ms", "is_hate", "date", "is_rand"} & {each.column for each in recipe.features}
    assert "left out: is_follow of random is another outcome of the row; it can be a label" in text


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("recbole", r"has no \*\.inter"),
        ("movielens", r"has no ratings\.csv or u\.data"),
        ("criteo", r"has no train\.txt or"),
        ("aliexpress", "no folder of a country with a train.csv"),
        ("kuairand", r"has no log_standard_\*\.csv"),
    ],
)
def test_files_that_are_missing_are_named(tmp_path: Path, layout: str, message: str) -> None:
    (tmp_path / "a.md").touch()
    with pytest.raises(UserError, match=message):
        made_recipe(tmp_path / "x.yaml", f"log={tmp_path}", layout=layout)  # type: ignore[arg-type]


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "ratings.csv", "who,what,rating,timestamp", ratings())
    with pytest.raises(UserError, match=r"has no column 'userId', which this --format needs; columns are: who, what"):
        made_recipe(tmp_path / "x.yaml", f"log={tmp_path}", layout="movielens")


@pytest.mark.parametrize("ending", [ending for ending, kind in ENDINGS.items() if kind in ("parquet", "csv", "json")])
@pytest.mark.parametrize("place", ["log", "logs/part-0"])
def test_what_init_reads_prepare_reads_too(tmp_path: Path, ending: str, place: str) -> None:
    """A file, or a folder of one, of every ending that is promised."""
    path = tmp_path / f"{place}.{ending}"
    path.parent.mkdir(exist_ok=True)
    kind = {"tsv": "(HEADER, DELIM '\t')", "csv": "(HEADER)"}.get(ending, f"(FORMAT {ENDINGS[ending]})")
    duckdb.sql(
        f"COPY (SELECT i % 40 AS user_id, i % 23 AS item_id, TIMESTAMP '2024-05-01' + to_hours(i) AS ts, "
        f"hash(i) % 3 = 0 AS clicked FROM range(900) t(i)) TO '{path}' {kind}"
    )
    init_recipe([f"log={path if place == 'log' else path.parent}"], tmp_path / "x.yaml", lambda _: None)
    assert sum(prepared(tmp_path / "x.yaml")["log"].values()) == 900
