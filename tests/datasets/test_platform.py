"""A platform shows what arms ask for, and chance does not depend on what they ask for."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from torchrec_xd.datasets.planted.clock import FeedClock, HomepageClock
from torchrec_xd.datasets.planted.clock_settings import FeedClockSettings, HomepageClockSettings
from torchrec_xd.datasets.planted.platform import (
    EXPLORED,
    POSITION,
    SCORE,
    arm_of,
    blocks,
    choose,
    first_distinct,
    serve,
    write_log,
)
from torchrec_xd.errors import UserError

SIZES = {"requests": 600, "candidates": 12, "places": 3}


@pytest.fixture(scope="module", params=["feed", "homepage"])
def world(request):
    if request.param == "feed":
        return FeedClock(FeedClockSettings(users=400, items=60))
    return HomepageClock(HomepageClockSettings(users=400, items=60))


def served(world, scores, arm=0, arms=2, exploration=0.0, day=4):
    found = [
        serve(block, scores, SIZES["places"], exploration)
        for block in blocks(world, world.day(day), day, arm=arm, arms=arms, **SIZES)
    ]
    columns = {name: np.concatenate([np.asarray(part.columns[name]) for part in found]) for name in plain(found)}
    return columns, sum(part.best for part in found)


def plain(found):
    return [name for name in found[0].columns if not name.startswith("hist_")]


def oracle(columns, prob):
    return prob


def item(columns):
    return columns.get("item", columns.get("target_item"))


def test_different_items_in_their_order():
    found = first_distinct(np.array([[3, 3, 1, 3, 2], [5, 5, 5, 5, 5], [9, 8, 7, 6, 5]]), 3)
    assert found.tolist() == [[3, 1, 2], [5, -1, -1], [9, 8, 7]]


def test_places_are_filled_from_the_best_or_at_random_and_never_twice():
    score = np.array([[0.1, 0.9, 0.5], [0.2, 0.1, -np.inf]])
    random = np.array([[0.7, 0.1, 0.2], [0.1, 0.2, 0.9]])
    explore = np.array([[False, False, False], [True, False, True]])
    assert choose(score, random, explore).tolist() == [[1, 2, 0], [1, 0, -1]]


def test_the_oracle_has_what_is_possible_and_chance_has_less(world):
    best, possible = served(world, oracle)
    assert best["prob"].astype(float).sum() == pytest.approx(possible)
    random, same = served(world, oracle, exploration=1.0)
    assert same == pytest.approx(possible)
    assert random["prob"].mean() < 0.8 * best["prob"].mean()
    assert random[EXPLORED].all()
    assert not best[EXPLORED].any()
    assert set(best[POSITION]) == {0, 1, 2}
    some, _ = served(world, oracle, exploration=0.3)
    assert some[EXPLORED].mean() == pytest.approx(0.3, abs=0.06)


def test_the_same_candidate_of_the_same_request_has_the_same_fate(world):
    """Whoever shows it, and at whatever place."""

    def fates(scores):
        found, _ = served(world, scores, arms=1)
        request = np.cumsum(found[POSITION] == 0)
        keys = zip(request.tolist(), item(found).tolist(), strict=True)
        return dict(zip(keys, found["click"].tolist(), strict=True))

    up, down = fates(oracle), fates(lambda columns, prob: (prob > np.median(prob)) + 0.01 * (1 - prob))
    common = up.keys() & down.keys()
    assert len(common) > 100
    assert {key: up[key] for key in common} == {key: down[key] for key in common}


def test_arms_have_users_of_their_own_who_stay_for_good(world):
    users = [set(served(world, oracle, arm)[0]["user_id"].tolist()) for arm in (0, 1)]
    later = [set(served(world, oracle, arm, day=9)[0]["user_id"].tolist()) for arm in (0, 1)]
    assert not users[0] & users[1]
    assert not (users[0] | later[0]) & (users[1] | later[1])
    assert len(users[0]) > 50
    shares = np.bincount(arm_of(np.arange(30_000), 3, (1, 2))) / 30_000
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)
    assert not np.array_equal(arm_of(np.arange(100), 3, (1, 2)), arm_of(np.arange(100), 3, (2, 2)))


def test_a_request_shows_no_item_twice_and_what_was_scored(world):
    found, _ = served(world, lambda columns, prob: -prob)
    assert len(found["click"]) == np.unique(np.stack([found[POSITION]])).size * (found[POSITION] == 0).sum()
    assert np.array_equal(found[SCORE], -found["prob"])
    in_order = found["prob"].reshape(-1, 3)
    assert (np.diff(in_order, axis=1) >= 0).all(), "the worst first, as it was asked for"
    assert (np.diff(np.sort(item(found).reshape(-1, 3), axis=1), axis=1) > 0).all()


def test_a_log_is_whole_or_not_there(world, tmp_path):
    def broken():
        for block in blocks(world, world.day(0), 0, arm=0, arms=1, **SIZES):
            yield serve(block, oracle, 3, 0.0).columns
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_log(tmp_path / "log.parquet", broken())
    assert not (tmp_path / "log.parquet").exists()
    with pytest.raises(UserError, match="nobody asked this arm for anything"):
        write_log(tmp_path / "log.parquet", iter(()))
    columns = [serve(block, oracle, 3, 0.0).columns for block in blocks(world, world.day(0), 0, arm=0, arms=1, **SIZES)]
    write_log(tmp_path / "log.parquet", columns)
    assert pq.read_table(tmp_path / "log.parquet").num_rows == 1_800
