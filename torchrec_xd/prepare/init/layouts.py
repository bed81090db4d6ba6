"""Known data sets: where their files are and what their columns mean. The files are the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init.files import Files, find
from torchrec_xd.prepare.init.roles import Guess, Label, Roles, Time, safe

Layout = Literal["recbole", "movielens", "criteo", "avazu", "aliexpress", "kuairand"]

_CATEGORY: dict[str, Any] = {"kind": "id", "vocabulary": {"min_count": 10}}
_COUNT: dict[str, Any] = {"kind": "dense", "log1p": True, "standard": True, "missing": "mean", "indicator": True}
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Childrens", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film_Noir", "Horror", "Musical", "Mystery", "Romance", "Sci_Fi", "Thriller", "War", "Western"),
)
_COUNTRY = re.compile(r"(?:^|[_-])(NL|ES|FR|US|RU)(?:$|[_-])", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """One input of a known data set."""

    files: Files
    roles: Roles | None = None
    """None: guessed, as of any other table."""
    only: str | None = None
    """Of attributes: the domain that they belong to. None: all that have their key."""
    added: dict[str, str] = field(default_factory=dict)
    """Column that a view adds -> its SQL over `r`."""
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Column -> what the recipe says about its feature; other columns are looked at."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Column that is no feature -> why."""
    part_of: str | None = None
    """Its rows follow those of this input in one domain; the column `part` holds the names of both."""


@dataclass(frozen=True)
class KnownSet:
    """All inputs of a known data set."""

    inputs: list[Known]
    notes: list[str]
    """For the top of the recipe."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further keys of the recipe."""


def known_set(layout: Layout, named: dict[str, str]) -> KnownSet:
    """The inputs of a known data set.

    Args:
        layout: which.
        named: domain to the path of its data set; data sets that hold all their domains have one path.

    Raises:
        UserError: files of the layout are missing.
    """
    if layout != "recbole" and len(named) > 1:
        raise UserError(f"--format {layout}: name one path, not {len(named)}: {', '.join(named.values())}")
    made: list[KnownSet] = [_LAYOUTS[layout](name, path) for name, path in named.items()]
    notes = list(dict.fromkeys(note for each in made for note in each.notes))
    return KnownSet([known for each in made for known in each.inputs], notes, made[0].settings)


def _one(path: str, *names: str) -> str | None:
    """The first of some files that a folder has; globs are allowed."""
    for name in names:
        if any(Path(path).glob(name)):
            return f"{path.rstrip('/')}/{name}"
    return None


def _required(layout: str, path: str, *names: str) -> str:
    found = _one(path, *names)
    if found is None:
        there = sorted(each.name for each in Path(path).iterdir())[:10] if Path(path).is_dir() else []
        raise UserError(
            f"--format {layout}: {path} has no {' or '.join(names)}; name the folder where it is"
            + (f" (there are: {', '.join(there)})" if there else "")
        )
    return found


def _csv(name: str, path: str, **settings: Any) -> Files:
    found = find(name, path, "csv")
    return replace(found, settings={**found.settings, **settings})


def _label(column: str, sql: str | None = None, name: str | None = None) -> Label:
    return Label(column, "as the data set defines it", name or safe(column), sql or column)


def _recbole(name: str, path: str) -> KnownSet:
    folder = str(Path(path).parent) if path.endswith(".inter") else path
    inter = path if path.endswith(".inter") else _required("recbole", path, "*.inter")
    stem = sorted(Path(folder).glob("*.inter"))[0].stem if "*" in inter else Path(inter).stem
    inputs = [Known(find(name, f"{folder.rstrip('/')}/{stem}.inter"))]
    for ending, what in (("item", "items"), ("user", "users")):
        if (found := _one(folder, f"{stem}.{ending}")) is not None:
            inputs.append(Known(find(f"{name}_{what}", found), only=name))
    return KnownSet(inputs, ["RecBole: one data set is one domain; name several for source and target"])


def _movielens(name: str, path: str) -> KnownSet:
    notes = ["MovieLens: a single domain of ratings, with the likes as label"]
    user, time = "as the data set defines it", "seconds since 1970"
    if (ratings := _one(path, "ratings.csv", "ratings.parquet")) is not None:
        roles = Roles(Guess("userId", user), Guess("movieId", user), Time("timestamp", time, unit="s"))
        roles.labels, roles.after = [_liked()], {"rating": "is the rating that the label is made of"}
        inputs = [Known(find(name, ratings), roles)]
        if (movies := _one(path, "movies.csv", "movies.parquet")) is not None:
            inputs.append(Known(find("movies", movies), only=name))
        return KnownSet(inputs, notes)
    log = _required("movielens", path, "ratings.csv", "u.data")
    roles = Roles(Guess("user_id", user), Guess("item_id", user), Time("timestamp", time, unit="s"))
    roles.labels, roles.after = [_liked()], {"rating": "is the rating that the label is made of"}
    columns = ["user_id", "item_id", "rating", "timestamp"]
    inputs = [Known(_csv(name, log, separator="\t", header=False, columns=columns), roles)]
    if (users := _one(path, "u.user")) is not None:
        columns = ["user_id", "age", "gender", "occupation", "zip_code"]
        files = _csv("users", users, separator="|", header=False, columns=columns, types={"zip_code": "VARCHAR"})
        inputs.append(Known(files, only=name))
    if (items := _one(path, "u.item")) is not None:
        columns = ["item_id", "title", "release_date", "video_release_date", "url", *_GENRES]
        types = {"release_date": "VARCHAR", "video_release_date": "VARCHAR"}
        if _is_utf8(items):
            files = _csv("movies", items, separator="|", header=False, columns=columns, types=types)
            inputs.append(Known(files, only=name, features={genre: {"kind": "id"} for genre in _GENRES}))
        else:
            notes.append(
                "QUESTION: u.item is Latin-1 and not read; convert it and run this again: iconv -f latin1 -t utf-8 "
                "u.item > u.item.new && mv u.item.new u.item"
            )
    return KnownSet(inputs, notes)


def _liked() -> Label:
    return Label("rating", "a rating of 4 or 5", "liked", "rating >= 4", question="is 4 the right limit?")


def _is_utf8(path: str) -> bool:
    try:
        Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _criteo(name: str, path: str) -> KnownSet:
    log = path if not Path(path).is_dir() else _required("criteo", path, "train.txt", "train.csv", "*.txt", "*.gz")
    counts, categories = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    files = _csv(
        name,
        log,
        separator="\t",
        header=False,
        columns=["label", *counts, *categories],
        types=dict.fromkeys(categories, "VARCHAR"),
    )
    roles = Roles(Guess("nobody", "the data set names no users: one for all, so GAUC says what AUC says"))
    roles.labels = [_label("label", name="click")]
    features = {**dict.fromkeys(counts, _COUNT), **dict.fromkeys(categories, _CATEGORY)}
    notes = [
        "Criteo: a single domain without users and times; rows are split by a hash of them, as papers do at random"
    ]
    return KnownSet([Known(files, roles, added={"nobody": "CAST(0 AS BIGINT)"}, features=features)], notes)


def _avazu(name: str, path: str) -> KnownSet:
    log = path if not Path(path).is_dir() else _required("avazu", path, "train.csv", "train.gz", "train")
    roles = Roles(
        Guess("device_ip", "the nearest to a user that there is: device_id is the same for most rows"),
        None,
        Time("hour", "YYMMDDHH", format="%y%m%d%H"),
    )
    roles.labels = [_label("click")]
    codes = ["C1", "banner_pos", "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22))]
    names = ["site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id"]
    features = dict.fromkeys([*codes, *names, "device_model"], _CATEGORY)
    known = Known(_csv(name, log), roles, features=features, left_out={"id": "is the row's own key"})
    return KnownSet([known], ["Avazu: a single domain of ten days of clicks"])


def _aliexpress(name: str, path: str) -> KnownSet:
    folders = (
        [Path(path), *sorted(each for each in Path(path).iterdir() if each.is_dir())] if Path(path).is_dir() else []
    )
    found = {match[1].lower(): each for each in folders if (match := _COUNTRY.search(each.name))}
    found = {country: each for country, each in found.items() if (each / "train.csv").is_file()}
    if not found:
        raise UserError(
            f"--format aliexpress: {path} has no folder of a country with a train.csv; name the folder of "
            "AliExpress_NL, AliExpress_ES, AliExpress_FR, AliExpress_US"
        )
    inputs = []
    for country, folder in found.items():
        roles = Roles(Guess("search_id", "a search: the data set names no users"))
        roles.labels = [_label("click"), _label("conversion")]
        files = _csv(country, f"{folder}/train.csv")
        names = [*(f"categorical_{i}" for i in range(1, 17)), *(f"numerical_{i}" for i in range(1, 64))]
        features = {
            column: {"kind": "id"} if column.startswith("cat") else {"kind": "dense", "standard": True}
            for column in names
        }
        inputs.append(Known(files, roles, features=features))
        if (folder / "test.csv").is_file():
            inputs.append(Known(_csv(f"{country}_test", f"{folder}/test.csv"), part_of=country))
    notes = ["AliExpress: a domain for each country. test.csv is the test split; validation is cut from train.csv"]
    return KnownSet(inputs, notes)


def _kuairand(name: str, path: str) -> KnownSet:
    folder = f"{path.rstrip('/')}/data" if (Path(path) / "data").is_dir() else path
    outcomes = ("is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
    later = ("play_time_ms", "profile_stay_time", "comment_stay_time")
    inputs = []
    for log in ("standard", "random"):
        files = find(log, _required("kuairand", folder, f"log_{log}_*.csv"))
        roles = Roles(
            Guess("user_id", "as the data set defines it"),
            Guess("video_id", "as the data set defines it"),
            Time("time_ms", "milliseconds since 1970", unit="ms"),
        )
        roles.labels = [_label("is_click"), _label("is_like"), _label("long_view")]
        roles.after = dict.fromkeys(outcomes, "is another outcome of the row; it can be a label")
        roles.after |= dict.fromkeys(later, "is known only after the label")
        left_out = {"date": "is in time_ms already", "hourmin": "is in time_ms already"}
        features: dict[str, dict[str, Any]] = {
            "tab": {"kind": "id"},
            "duration_ms": {"kind": "dense", "log1p": True, "standard": True},
        }
        inputs.append(Known(files, roles, features=features, left_out=left_out))
    if (users := _one(folder, "user_features_*.csv")) is not None:
        inputs.append(Known(find("users", users)))
    if (videos := _one(folder, "video_features_basic_*.csv")) is not None:
        inputs.append(Known(find("videos", videos)))
    notes = [
        "KuaiRand: videos shown by the recommender (standard) and videos shown at random",
        "video_features_statistic is not used: it counts what happened after many of the rows, too",
    ]
    return KnownSet(inputs, notes, {"time_zone": "Asia/Shanghai"})


_LAYOUTS: dict[Layout, Callable[[str, str], KnownSet]] = {
    "recbole": _recbole,
    "movielens": _movielens,
    "criteo": _criteo,
    "avazu": _avazu,
    "aliexpress": _aliexpress,
    "kuairand": _kuairand,
}
