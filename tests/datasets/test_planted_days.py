"""Planted worlds with a clock: days that need no other day, lives, drift, and what only ids tell."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.worlds import deviations, numpy_column
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.datasets import Manifest, prepare_world
from torchrec_xd.datasets.planted.clock import FeedClock, HomepageClock, drawn_rows
from torchrec_xd.datasets.planted.clock_settings import FeedClockSettings, HomepageClockSettings
from torchrec_xd.errors import UserError

SMALL = {"users": 300, "items": 100, "target_rows": 250, "source_ratio": 2.0, "days": 4}
PRESETS = ("feed_days", "homepage_days")


def make(out, preset="feed_days", **settings):
    return prepare_world(preset, out, {**SMALL, **settings}, lambda line: None)


def feed(**settings):
    return FeedClock(FeedClockSettings(**settings))


def columns(world, number, domain=0, count=20_000):
    return {name: np.asarray(values) for name, values in rows(world, number, domain, count).items()}


def rows(world, number, domain, count):
    found = drawn_rows(world, world.day(number), number, domain, 0, count)
    return {name: values for name, values in found.items() if not name.startswith("hist_")}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_day_is_a_file_of_each_domain_that_one_schema_reads(tmp_path, preset):
    manifest = make(tmp_path / "w", preset, test_days=1)
    assert Manifest.model_validate_json((tmp_path / "w/manifest.json").read_text()) == manifest
    assert list(contents(tmp_path / "w")) == [
        f"{domain}/{split}/day=00{day}/part-00000.parquet"
        for domain in ("source", "target")
        for split, days in (("test", [3]), ("train", [0, 1, 2]))
        for day in days
    ]
    schema = load_schema(tmp_path / "w/schema.yaml")
    for split, days in (("train", 3), ("test", 1)):
        loader = Loader(schema, LoaderSettings(batch_size=64), split, ShardSpec(), extra=("activity", "cold", "day"))
        assert loader.rows == days * (250 + 500)
        assert sum(len(batch) for batch in loader.batches()) == loader.rows
    lines = json.loads((tmp_path / "w/days.json").read_text())
    assert [(line["day"], line["domain"]) for line in lines] == [(d, n) for d in range(4) for n in ("target", "source")]
    for line in lines:
        table = pq.read_table(
            tmp_path / "w" / line["domain"] / line["split"] / f"day=00{line['day']}", partitioning=None
        )
        assert (len(table), numpy_column(table, "click").sum()) == (line["rows"], line["positives"])
        assert set(numpy_column(table, "day")) == {line["day"]}
    last = [line["oracle"] for line in lines[-2:]]
    assert manifest.oracle == last[0] | last[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_day_does_not_depend_on_threads_or_on_other_days(tmp_path, preset):
    make(tmp_path / "short", preset, days=2, workers=1)
    make(tmp_path / "long", preset, days=4, workers=3)
    make(tmp_path / "other", preset, days=2, seed=1)
    short, long, other = (contents(tmp_path / name) for name in ("short", "long", "other"))
    assert len(short) == 4
    assert {path: long[path] for path in short} == short
    assert not any(other[path] == content for path, content in short.items())


@pytest.mark.parametrize("ids_matter", [0.0, 0.5, 1.0])
def test_labels_are_drawn_from_their_probability_on_every_day(ids_matter):
    world = feed(ids_matter=ids_matter, users=500, items=100)
    for number in (0, 3, 25):
        for domain in (0, 1):
            found = columns(world, number, domain)
            for part in np.array_split(np.argsort(found["prob"]), 5):
                assert abs(deviations(found["click"][part], found["prob"][part].astype(float))) < 4.5
    assert columns(world, 0)["prob"].mean() == pytest.approx(0.2, abs=0.02)


def test_ids_go_up_with_birth_and_are_never_used_again():
    world = feed(users=1_000, user_births=0.1, user_deaths=0.3, items=200, item_births=0.05, days=12)
    schema = world.schema("w")
    features = {feature.column: feature.rows for feature in schema.features}
    assert (features["user_id"], features["target_item"]) == (1_000 + 11 * 100, 200 + 11 * 10)
    gone: set[int] = set()
    before = set(range(1_000))
    for number in range(12):
        alive = world.day(number).users.id_U
        assert len(set(alive)) == len(alive)
        assert alive.max() == 1_000 + number * 100 - 1
        assert not gone & set(alive)
        gone |= before - set(alive)
        before = set(alive)
        born = (alive >= 1_000 + (number - 1) * 100) if number else np.zeros(len(alive), dtype=bool)
        assert np.array_equal(world.day(number).users.users.cold_U, born)
        assert columns(world, number, 0, 500)["user_id"].max() < 1_000 + number * 100


def test_lives_are_as_long_as_the_death_rate_says_and_a_late_day_is_no_larger():
    world = feed(users=20_000, user_births=0.05, user_deaths=0.05, items=5_000, item_births=0.0, item_deaths=0.1)
    first = world.day(10).users.id_U
    assert (first < 20_000).sum() == pytest.approx(20_000 * 0.95**10, rel=0.02)
    assert len(world.day(300).users.id_U) == pytest.approx(20_000, rel=0.02)
    assert len(world.day(10).items(0).id_N) == pytest.approx(5_000 * 0.9**10, rel=0.06)
    assert list(world.day(2_000).items(0).id_N) == [0], "the first one stays"


def test_tastes_turn_by_the_drift():
    world = feed(users=4_000, user_births=0.0, user_deaths=0.0, drift=0.05, popular_taste=0.0, agreement=0.8)
    first, tenth = world.day(0).users.users.taste, world.day(10).users.users.taste
    for domain in (0, 1):
        assert np.corrcoef(first[domain].ravel(), tenth[domain].ravel())[0, 1] == pytest.approx(np.cos(0.5), abs=0.02)
        assert tenth[domain].var() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(tenth[0].ravel(), tenth[1].ravel())[0, 1] == pytest.approx(0.8, abs=0.02)


def test_popularity_fades_with_age_and_turns():
    def log_weights(number, births=0.0, **settings):
        items = feed(item_births=births, item_deaths=0.0, items=500, **settings).day(number).items(0).items
        return np.log(items.weight_N)

    def centred(values):
        return values - values.mean()

    still = centred(log_weights(0, fade=0.0, turning=0.0))
    assert np.array_equal(still, centred(log_weights(20, fade=0.0, turning=0.0)))
    aged = log_weights(4, 0.2, fade=0.1, turning=0.0) - log_weights(4, 0.2, fade=0.0, turning=0.0)
    assert np.round(aged - aged[-1], 6) == pytest.approx(-0.1 * np.repeat([4, 3, 2, 1, 0], [500, 100, 100, 100, 100]))
    wave, later = (centred(log_weights(n, fade=0.0, turning=0.5)) - still for n in (7, 14))
    assert wave.std() == pytest.approx(0.5, abs=0.04)
    assert abs(np.corrcoef(wave, later)[0, 1]) < 0.9
    assert len(columns(feed(fade=300.0), 9, count=10)["click"]) == 10, "no weight becomes nothing"


@pytest.mark.parametrize("ids_matter", [0.0, 0.3, 1.0])
def test_ids_make_their_share_of_the_logit(ids_matter):
    day = feed(ids_matter=ids_matter, users=8_000, items=4_000, popular_taste=0.0, strength=1.7).day(3)
    items = day.items(0).items
    assert items.quality_N.var() == pytest.approx(ids_matter * 1.7**2, rel=0.08)
    generator = np.random.default_rng(0)
    user, item = (generator.integers(0, count, 50_000) for count in (6_000, 3_500))
    assert day.interests[0].logit(user, item).var() == pytest.approx(1.7**2, rel=0.12)
    assert (items.meaning_NK == 0).all() == (ids_matter == 1)


def test_a_homepage_is_clicked_for_itself_or_where_a_wish_fits():
    world = HomepageClock(HomepageClockSettings(domains=3, users=500, items=200))
    found = columns(world, 5, count=40_000)
    passed = (found["wanted"] & found["fit"]) | (found["wanted_2"] & found["fit_2"])
    assert passed.sum() > 1_000
    assert found["click"][passed == 1].all()
    assert abs(deviations(found["click"][passed == 0], found["prob_own"][passed == 0].astype(float))) < 4.5
    not_prob = (1 - found["prob_own"].astype(float)) * (1 - found["prob_wanted"] * found["prob_transfer"].astype(float))
    not_prob *= 1 - found["prob_wanted_2"] * found["prob_transfer_2"].astype(float)
    assert found["prob"] == pytest.approx(1 - not_prob, abs=1e-6)
    scene = found["scene_slot"], found["scene_place"], found["category"]
    assert np.array_equal(found["prob_transfer"], world.fit_SLC[0][scene].astype(np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_days": 4}, "test_days: 4 of 4 days leave none to train on; at most 3"),
        ({"days": 0}, "'days': .*greater than or equal to 1"),
        ({"ids_matter": 1.5}, "'ids_matter': .*less than or equal to 1"),
        ({"quality": 0.3}, "unknown key 'quality'"),
    ],
)
def test_misuse_is_told(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "w", **settings)
    assert not any(tmp_path.iterdir())


def test_users_of_the_first_day_have_a_history_and_new_ones_begin_without():
    world = feed(users=2_000, user_births=0.2)
    day = world.day(3)
    activity, born = day.users.users.activity_U, day.users.id_U
    assert activity[born < 2_000].mean() > 5
    assert not activity[born >= 2_000 + 2 * 400].any()
