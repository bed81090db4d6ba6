"""A planted feed does what its settings say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, f_oneway

from tests.support.worlds import deviations, feed, numpy_column, rows
from torchrec_xd.datasets.planted.population import draw_users
from torchrec_xd.datasets.planted.settings import FeedSettings

RARE = 1e-5
"""Tests of randomness fail once in so many seeds; theirs are fixed."""


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    agreement=st.floats(-1, 1),
    strength=st.floats(0, 3),
    label_noise=st.floats(0, 1),
    click_rate=st.floats(0.05, 0.6),
)
def test_labels_are_drawn_from_their_probability(**settings):
    world = feed(users=500, items=100, **settings)
    for domain in (0, 1):
        table = rows(world, domain, "test")
        label, prob = numpy_column(table, "click"), numpy_column(table, "prob").astype(np.float64)
        for part in np.array_split(np.argsort(prob), 5):
            assert abs(deviations(label[part], prob[part])) < 4.5
        assert prob.mean() == pytest.approx(settings["click_rate"], abs=0.02)


def test_pure_label_noise_leaves_nothing_to_know():
    assert set(numpy_column(rows(feed(label_noise=1.0, click_rate=0.25)), "prob")) == {0.25}


def test_the_oracle_is_neither_blind_nor_all_knowing():
    table = rows(feed(), split="test")
    label, prob = numpy_column(table, "click"), numpy_column(table, "prob")
    positive, negative = prob[label == 1], prob[label == 0]
    auc = np.searchsorted(np.sort(negative), positive).mean() / len(negative)
    assert 0.78 < auc < 0.87


@pytest.mark.parametrize("agreement", [-1.0, -0.6, 0.0, 0.8, 1.0])
def test_agreement_is_the_correlation_of_what_is_liked(agreement):
    users = draw_users(np.zeros((2, 3)), FeedSettings(users=5_000, domains=3, agreement=agreement), (0,))
    meaning_KN = np.random.default_rng(0).standard_normal((3, 400))
    target, first, second = (taste_UK @ meaning_KN for taste_UK in users.taste)
    for source in (first, second):
        assert np.corrcoef(source.ravel(), target.ravel())[0, 1] == pytest.approx(agreement, abs=0.03)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(agreement**2, abs=0.12)
    assert [taste_UK.var() for taste_UK in users.taste] == pytest.approx([1, 1, 1], abs=0.15)


def test_the_target_is_the_same_however_the_source_agrees():
    helpful, useless = (rows(feed(agreement=a), count=2_000) for a in (0.8, 0.0))
    differ = [name for name in helpful.column_names if helpful[name] != useless[name]]
    assert differ == ["hist_source"]


def test_features_are_shared_specific_and_noise_in_the_shares_asked_for():
    world = feed(features=8, overlap=0.25, noise=0.5, domains=3)
    schema = world.schema("world")
    shared = [feature.column for feature in schema.features if feature.group == "shared"]
    assert shared == ["category", "brand"]
    assert len(schema.features_of("source_2", "specific")) == 1 + 6
    noise = [f"{domain}_attribute_{n}" for domain in ("target", "source", "source_2") for n in (4, 5, 6)]
    assert world.noise_features == tuple(noise)
    assert feed(features=8, overlap=0.0).shared == ("category",)
    assert not feed(features=8, overlap=1.0).noise_features


@pytest.mark.parametrize("domain", [0, 1])
def test_noise_says_nothing_of_a_click_and_the_other_features_do(domain):
    world = feed()
    table, name = rows(world, domain, count=60_000), world.settings.names[domain]
    logit = np.log(numpy_column(table, "prob") / (1 - numpy_column(table, "prob")))
    for feature in world.schema("world").features_of(name):
        if feature.kind != "id" or feature.group == "user":
            continue
        value = numpy_column(table, feature.column)
        p = f_oneway(*(logit[value == v] for v in np.unique(value) if (value == v).sum() > 1)).pvalue
        assert (p > RARE) == (feature.column in world.noise_features), (feature.column, p)
        if feature.column in world.noise_features:
            assert chisquare(np.bincount(value, minlength=feature.rows)).pvalue > RARE


def test_a_value_means_the_same_in_all_domains_where_it_is_shared():
    world = feed(features=2, overlap=1.0, quality=0.0, agreement=1.0)
    for items in world.items:
        for category, brand in ((0, 0), (1, 7)):
            of_both = (items.values["category"] == category) & (items.values["brand"] == brand)
            assert len(np.unique(items.meaning_NK[of_both], axis=0)) <= 1
    target, source = world.items
    pairs = [items.values["category"].astype(int) * 1_000 + items.values["brand"] for items in world.items]
    common, in_target, in_source = np.intersect1d(*pairs, return_indices=True)
    assert len(common) > 20
    assert np.array_equal(target.meaning_NK[in_target], source.meaning_NK[in_source])


def test_histories_follow_taste():
    settings = FeedSettings(users=10, shared_users=1.0, source_events=4_000, history=8_000, segments=1)
    meaning_CK = np.random.default_rng(1).standard_normal((6, 3)) / np.sqrt(3)
    users = draw_users(meaning_CK, settings, (0,))
    for user in range(10):
        events = users.histories[1][user].values.to_numpy()
        chance_C = np.exp(1.5 * users.taste[1][user] @ meaning_CK.T)
        expected_C = chance_C / chance_C.sum() * len(events)
        assert chisquare(np.bincount(events, minlength=6), expected_C).pvalue > RARE
    lengths = [np.array([len(events) for events in history]) for history in users.histories]
    assert np.array_equal(users.activity_U, lengths[0] + lengths[1])
    assert lengths[1].mean() == pytest.approx(4_000, rel=0.02)


def test_lists_are_cut_and_activity_is_not():
    users = draw_users(np.zeros((3, 3)), FeedSettings(users=2_000, history=4), (0,))
    assert max(len(events) for events in users.histories[1]) == 4
    assert users.activity_U.max() > 8


def test_segments_are_of_like_minds():
    users = draw_users(np.zeros((2, 3)), FeedSettings(users=4_000, segments=12), (0,))
    within = [users.taste[0][users.segment_U == s].var(axis=0).sum() for s in range(12)]
    assert np.mean(within) < 0.6 * users.taste[0].var(axis=0).sum()
    assert set(users.segment_U) == set(range(12))


def test_popularity_falls_by_zipfs_law():
    item = numpy_column(rows(feed(items=50, zipf=0.8), count=200_000), "target_item")
    expected = np.arange(1, 51) ** -0.8
    assert chisquare(np.bincount(item, minlength=50), expected / expected.sum() * 200_000).pvalue > RARE


def test_users_are_everywhere_or_in_one_domain():
    world = feed(users=2_000, shared_users=0.4, domains=3)
    members = [set(seen.ids.tolist()) for seen in world.users.seen]
    for domain in range(3):
        assert set(numpy_column(rows(world, domain), "user_id").tolist()) <= members[domain]
    assert len(set.intersection(*members)) == pytest.approx(800, abs=80)
    assert len(set.union(*members)) == 2_000
    assert sum(map(len, members)) == pytest.approx(2_000 + 2 * 800, abs=160)


def test_cold_users_are_new_to_the_target_alone():
    world = feed(users=2_000, cold_users=0.5)
    train, valid, test = (rows(world, 0, split) for split in ("train", "valid", "test"))
    assert not numpy_column(train, "cold").any()
    assert not numpy_column(valid, "cold").any()
    assert numpy_column(test, "cold").mean() == pytest.approx(0.5 * 0.7 / 0.85, abs=0.04)
    cold = test.filter(test["cold"].cast("bool"))
    known = set(numpy_column(train, "user_id").tolist())
    assert not known & set(numpy_column(cold, "user_id").tolist())
    assert not any(map(len, cold["hist_target"].to_pylist()))
    assert np.mean([len(events) for events in cold["hist_source"].to_pylist()]) > 5
    assert numpy_column(rows(world, 1), "cold").mean() == pytest.approx(0.5 * 0.7 / 0.85, abs=0.04)


def test_the_smallest_world_has_users_in_every_domain():
    world = feed(users=10, items=10, domains=8, shared_users=0.0, cold_users=0.9)
    assert all(len(rows(world, domain, split, count=5)) == 5 for domain in range(8) for split in ("train", "test"))


def test_a_poisoned_user_likes_the_opposite_in_the_sources():
    plain, poisoned = (feed(poisoned_users=share, users=4_000, domains=3).users for share in (0.0, 0.25))
    assert np.array_equal(plain.taste[0], poisoned.taste[0])
    turned = (plain.taste[1] == -poisoned.taste[1]).all(axis=1)
    assert turned.mean() == pytest.approx(0.25, abs=0.03)
    assert np.array_equal(plain.taste[1][~turned], poisoned.taste[1][~turned])
    assert np.array_equal(plain.taste[2][turned], -poisoned.taste[2][turned])


def test_vectors_tell_what_an_item_means_each_domain_in_a_space_of_its_own():
    world = feed(vector=16, overlap=0.25)
    (feature,) = (f for f in world.schema("w").features if f.kind == "vector" and f.domains == ("source",))
    assert (feature.column, feature.length, feature.group) == ("source_vector", 16, "specific")
    told = {}
    for domain, name in enumerate(world.settings.names):
        table = rows(world, domain)
        vector = np.stack(table[f"{name}_vector"].to_pylist())
        meaning = world.items[domain].meaning_NK[numpy_column(table, f"{name}_item")]
        found = np.linalg.lstsq(vector, meaning, rcond=None)[0]
        told[name] = found
        assert 1 - (meaning - vector @ found).var() / meaning.var() > 0.6
    assert abs(np.corrcoef(told["target"].ravel(), told["source"].ravel())[0, 1]) < 0.6
    assert all(f.kind != "vector" for f in feed().schema("w").features)
