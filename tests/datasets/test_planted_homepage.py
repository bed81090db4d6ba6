"""A planted homepage does what its settings say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.worlds import deviations, homepage, numpy_column, rows


def columns(table, *names):
    return tuple(numpy_column(table, name).astype(np.float64) for name in names)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    scene_dependence=st.floats(0, 1),
    label_noise=st.floats(0, 1),
    domains=st.integers(2, 3),
)
def test_all_labels_are_drawn_from_their_probability(**settings):
    world = homepage(users=500, items=100, **settings)
    for task, truth in world.tasks.items():
        label, prob = columns(rows(world, world.settings.names.index(task.domain), "test"), task.label, truth)
        for part in np.array_split(np.argsort(prob), 5):
            assert abs(deviations(label[part], prob[part])) < 4.5, task


def test_a_click_is_an_own_interest_or_a_wish_that_fits():
    table = rows(homepage(domains=3))
    names = ("click", "prob", "wanted", "fit", "prob_wanted", "prob_transfer")
    click, prob, wanted, fit, prob_wanted, prob_transfer = columns(table, *names)
    wanted_2, fit_2, prob_wanted_2, prob_transfer_2 = columns(
        table, "wanted_2", "fit_2", "prob_wanted_2", "prob_transfer_2"
    )
    passed = (wanted * fit + wanted_2 * fit_2) > 0
    assert passed.sum() > 1_000
    assert click[passed].all()
    own = 1 - (1 - prob) / ((1 - prob_wanted * prob_transfer) * (1 - prob_wanted_2 * prob_transfer_2))
    assert own.mean() == pytest.approx(0.05, abs=0.005)
    assert abs(deviations(click[~passed], own[~passed])) < 4.5
    assert prob_wanted.mean() == pytest.approx(0.2, abs=0.01)


def test_whether_a_wish_fits_hangs_on_scene_and_category_alone():
    """Given the scene and the category, `fit` knows neither the user nor the wish."""
    world = homepage()
    table = rows(world)
    wanted, fit, prob_transfer = columns(table, "wanted", "fit", "prob_transfer")
    place = tuple(numpy_column(table, name) for name in ("scene_slot", "scene_place", "category"))
    assert np.array_equal(prob_transfer, world.fit_SLC[0][place].astype(np.float32))
    for value in (0, 1):
        assert abs(deviations(fit[wanted == value], prob_transfer[wanted == value])) < 4.5


def test_scene_dependence_moves_the_variance_from_the_category_to_the_scene():
    def spread(dependence):
        (fit_SLC,) = homepage(scene_dependence=dependence).fit_SLC
        logit_SLC = np.log(fit_SLC / (1 - fit_SLC))
        return logit_SLC, logit_SLC.var(axis=(0, 1)).mean()

    flat_SLC, by_scene = spread(0.0)
    assert by_scene == pytest.approx(0, abs=1e-20)
    assert flat_SLC.std() == pytest.approx(2.5)
    assert np.ptp(flat_SLC[0, 0]) > 2.5
    scene_SLC, by_scene = spread(1.0)
    assert scene_SLC.std() == pytest.approx(2.5)
    assert by_scene > 0.9 * 2.5**2
    assert scene_SLC.mean(axis=(0, 2)).std() > 0.5, "places matter"
    assert (scene_SLC[0] - scene_SLC[1]).std() > 0.5, "what a slot means hangs on the category"
    assert spread(0.5)[1] == pytest.approx(0.5 * by_scene)


def test_towers_and_scenes_have_columns_of_their_own():
    world = homepage()
    schema = world.schema("world")
    assert not any(feature.group == "specific" for feature in schema.features)
    assert [f.column for f in schema.features_of("target", "scene")] == ["scene_slot", "scene_place"]
    assert not schema.features_of("source", "scene")
    assert {"category", "item"} <= {f.column for f in schema.features_of("source", "shared")}
    truth = {"prob", "prob_wanted", "prob_transfer"}
    assert truth <= set(rows(world, count=10).column_names)
    assert not truth & {feature.column for feature in schema.features}


def test_items_are_the_same_in_all_domains():
    world = homepage(items=20)
    tables = [rows(world, domain) for domain in (0, 1)]
    for column in world.shared:
        value = [dict(zip(*(numpy_column(t, c).tolist() for c in ("item", column)), strict=True)) for t in tables]
        assert value[0] == value[1]
        assert len(value[0]) == 20


def test_categories_that_never_fit_have_no_transfer_in_any_scene_of_any_source():
    world = homepage(never_fit=0.5, domains=3)
    category, transfer, transfer_2, fit = columns(rows(world), "category", "prob_transfer", "prob_transfer_2", "fit")
    never = (world.fit_SLC[0] == 0).all(axis=(0, 1))
    assert 10 <= never.sum() <= 30  # of 40
    barred = never[category.astype(int)]
    assert not transfer[barred].any()
    assert not transfer_2[barred].any()
    assert not fit[barred].any()
    assert (transfer[~barred] > 0).all()
    assert (transfer_2[~barred] > 0).all()


def test_what_a_source_does_not_show_is_not_wanted_there():
    world = homepage(shared_items=0.3)
    shown = set(numpy_column(rows(world, 1), "item"))
    (item, wanted, prob_wanted) = columns(rows(world), "item", "wanted", "prob_wanted")
    assert 0.2 < len(shown) / world.settings.items < 0.4
    elsewhere = ~np.isin(item, list(shown))
    assert elsewhere.mean() > 0.4
    assert not wanted[elsewhere].any()
    assert not prob_wanted[elsewhere].any()
    assert (prob_wanted[~elsewhere] > 0).all()


def test_only_members_of_a_source_want_something_there_where_that_is_asked_for():
    world = homepage(members_only=True, shared_users=0.5)
    user, prob_wanted = columns(rows(world), "user_id", "prob_wanted")
    member = world.users.member_DU[1][user.astype(int)]
    assert 0.5 < member.mean() < 0.8
    assert (prob_wanted[member] > 0).all()
    assert not prob_wanted[~member].any()
    _, everyone = columns(rows(homepage(shared_users=0.5)), "user_id", "prob_wanted")
    assert (everyone > 0).all()
