"""Metrics by hand, against scikit-learn and slow loops, and their invariances; on one rank."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from tests.support.batches import SCHEMA, TASK_DOMAIN, batch_of
from tests.support.slow_metrics import equal, predictions, slow_gauc
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings, binary_metrics
from torchrec_xd.settings import validate

WEIGHTED = SCHEMA.model_copy(update={"activity": None, "weight": "w"})


def test_by_hand():
    score = np.array([0.8, 0.4, 0.4, 0.2, 0.6, 0.9])
    label = np.array([1, 1, 0, 0, 0, 1])
    user = np.array([7, 7, 7, 3, 7, 3])
    found = binary_metrics(score, label, user)
    # Pairs: .8 beats .4 .2 .6; .4 ties .4, beats .2, loses to .6; .9 beats all: 3 + 1.5 + 3 of 9.
    assert found.auc == pytest.approx(7.5 / 9)
    # User 7: .8 beats .4 .6; .4 ties .4, loses to .6: 2.5 of 4 over 4 rows. User 3: 1 over 2 rows.
    assert found.gauc == pytest.approx((4 * 0.625 + 2 * 1) / 6)
    logloss = -math.log(0.8 * 0.4 * 0.6 * 0.8 * 0.4 * 0.9) / 6
    assert found.logloss == pytest.approx(logloss)
    assert found.ne == pytest.approx(logloss / math.log(2))
    assert found.calibration == pytest.approx(3.3 / 3)
    assert (found.rows, found.positives, found.gauc_users, found.gauc_users_excluded) == (6, 3, 2, 0)


def test_weights_by_hand():
    score, label = np.array([0.5, 0.5, 0.2, 0.7]), np.array([1, 0, 0, 0])
    found = binary_metrics(score, label, np.array([1, 1, 1, 2]), np.array([2.0, 3.0, 4.0, 5.0]))
    assert found.auc == pytest.approx((3 / 2 + 4) / (3 + 4 + 5))
    assert found.gauc == pytest.approx((3 / 2 + 4) / (3 + 4))
    logloss = -(2 * math.log(0.5) + 3 * math.log(0.5) + 4 * math.log(0.8) + 5 * math.log(0.3)) / 14
    rate = 2 / 14
    assert found.logloss == pytest.approx(logloss)
    assert found.ne == pytest.approx(logloss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)))
    assert found.calibration == pytest.approx((2 * 0.5 + 3 * 0.5 + 4 * 0.2 + 5 * 0.7) / 2)
    assert (found.rows, found.positives, found.gauc_users, found.gauc_users_excluded) == (4, 1, 1, 1)


@settings(max_examples=150, deadline=None)
@given(predictions())
def test_equals_references(data):
    score, label, user, weight = data
    found = binary_metrics(score, label, user, weight)
    if len(set(label.tolist())) == 2:
        assert found.auc == pytest.approx(roc_auc_score(label, score, sample_weight=weight), rel=1e-12)
    else:
        assert math.isnan(found.auc)
    assert found.logloss == pytest.approx(log_loss(label, score, sample_weight=weight, labels=[0, 1]), rel=1e-12)
    gauc, users, excluded = slow_gauc(score, label, user, weight)
    assert found.gauc == pytest.approx(gauc, rel=1e-12, nan_ok=True)
    assert (found.gauc_users, found.gauc_users_excluded) == (users, excluded)
    assert equal(binary_metrics(score, label, user), binary_metrics(score, label, user, np.full(len(score), 1.0)))


@settings(max_examples=60, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    assert equal(binary_metrics(*data), binary_metrics(*(column[order] for column in data)))


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_ranking_metrics_see_the_order_of_scores_alone(data):
    score, *rest = data
    found, transformed = binary_metrics(score, *rest), binary_metrics(np.exp(3 * score) - 7, *rest)
    assert (transformed.auc, transformed.gauc) == pytest.approx((found.auc, found.gauc), nan_ok=True)
    reversed_ = binary_metrics(-score, *rest)
    assert (1 - reversed_.auc, 1 - reversed_.gauc) == pytest.approx((found.auc, found.gauc), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_a_row_twice_is_a_row_of_weight_two(data):
    score, label, user, _ = data
    times = np.arange(len(score)) % 3 + 1
    repeated = binary_metrics(*(np.repeat(column, times) for column in (score, label, user)))
    weighted = binary_metrics(score, label, user, times)
    assert equal(repeated, replace(weighted, rows=times.sum(), positives=times[label == 1].sum()))


def test_a_row_of_weight_zero_is_counted_and_nothing_else():
    score, label, user = np.array([0.3, 0.6, 0.1]), np.array([0, 1, 1]), np.array([1, 1, 2])
    found = binary_metrics(score, label, user, np.array([1.0, 1.0, 0.0]))
    alone = binary_metrics(score[:2], label[:2], user[:2])
    assert found.as_dict() == {**alone.as_dict(), "rows": 3, "positives": 2, "gauc_users_excluded": 1}


def test_scores_above_one_are_truncated_for_probability_metrics_only():
    label, user = np.array([1, 0, 1, 0]), np.array([1, 1, 1, 1])
    whole = binary_metrics(np.array([1.8, 1.2, 0.9, -0.1]), label, user)
    truncated = binary_metrics(np.array([1.0, 1.0, 0.9, 0.0]), label, user)
    assert (whole.auc, whole.gauc) == (0.75, 0.75)
    assert (truncated.auc, truncated.gauc) == (0.625, 0.625)
    assert (whole.logloss, whole.ne, whole.calibration) == (truncated.logloss, truncated.ne, truncated.calibration)
    assert whole.calibration == 2.9 / 2
    assert whole.logloss == pytest.approx((23 * math.log(2) - math.log(0.9)) / 4, abs=1e-6)


@pytest.mark.parametrize("large", [1e16, 1e30])
def test_a_heavy_row_hides_no_light_ones(large):
    # Of the users with both classes, 1 is in perfect order and 2 in the reverse one.
    label, user = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 1, 2, 2])
    found = binary_metrics(np.array([0.1, 0.2, 0.9, 0.3, 0.4]), label, user, np.array([large, 1, 1, 3, 3]))
    assert found.gauc == (2 * 1 + 6 * 0) / 8
    # The positive at .15 is above the light negative at .1, whatever the heavy one at .2 weighs.
    score, label, weight = np.array([0.1, 0.2, 0.15]), np.array([0, 0, 1]), np.array([1, large, 1])
    for user in (np.zeros(3), np.arange(3)):
        assert binary_metrics(score, label, user, weight).auc == 1 / large
    # The pair of .4 and .3, of a user who has a heavy negative at .5, is in the right order.
    score, label, weight = np.array([0.3, 0.5, 0.4]), np.array([0, 0, 1]), np.array([1, large, 1])
    assert binary_metrics(score, label, np.zeros(3), weight).gauc == 1 / large


@pytest.mark.parametrize("seed", range(5))
def test_users_of_every_length_equal_the_slow_loops(seed):
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(40), random.integers(1, 40, 40))
    score, label = random.integers(0, 30, len(user)) / 30, random.integers(0, 2, len(user))
    weight = random.choice([1e-9, 1, 1e9], len(user))
    slow, *_ = slow_gauc(score, label, user, weight)
    assert binary_metrics(score, label, user, weight).gauc == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize(("label", "calibration"), [(0, None), (1, 0.5)])
def test_one_class(label, calibration):
    found = binary_metrics(np.array([0.4, 0.6]), np.array([label, label]), np.array([1, 2]))
    assert math.isnan(found.auc)
    as_dict = found.as_dict()
    assert (as_dict["auc"], as_dict["gauc"], as_dict["ne"], as_dict["calibration"]) == (None, None, None, calibration)
    assert as_dict["logloss"] == pytest.approx(-math.log(0.4 * 0.6) / 2)
    assert (found.rows, found.positives, found.gauc_users, found.gauc_users_excluded) == (2, 2 * label, 0, 2)


def test_no_rows():
    none = np.empty(0)
    found = binary_metrics(none, none, none.astype(int)).as_dict()
    assert found == {
        **dict.fromkeys(("auc", "gauc", "logloss", "ne", "calibration")),
        **dict.fromkeys(("rows", "positives", "gauc_users", "gauc_users_excluded"), 0),
    }


def test_a_base_rate_predicted_by_heart_has_ne_one():
    label = np.array([1, 0, 0, 0])
    found = binary_metrics(np.full(4, 0.25), label, np.arange(4))
    assert (found.ne, found.calibration, found.auc) == pytest.approx((1, 1, 0.5))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"score": np.array([math.nan, 0.5])}, "in 1 rows a score is NaN"),
        ({"score": np.array([math.inf, -math.inf])}, "in 2 rows a score is NaN or infinite"),
        ({"label": np.array([1, math.nan])}, "in 1 rows a label is neither 0 nor 1"),
        ({"weight": np.array([-1, 2])}, "in 1 rows a row weight is negative"),
        ({"weight": np.array([math.nan, 2])}, "in 1 rows a row weight is negative"),
    ],
)
def test_refuses(change, text):
    good = {"score": np.array([0.1, 0.2]), "label": np.array([0, 1]), "user": np.array([1, 2])}
    with pytest.raises(UserError, match=text):
        binary_metrics(**{**good, **change})


def test_a_million_rows_are_quick():
    draw = np.random.default_rng(0)
    score, user = draw.random(1_000_000, dtype=np.float32), draw.integers(0, 100_000, 1_000_000)
    start = time.perf_counter()
    binary_metrics(score, (draw.random(1_000_000) < score).astype(np.float32), user)
    assert time.perf_counter() - start < 10  # takes 0.4 s; a loop over users takes minutes


def test_evaluation_takes_each_tasks_rows_from_its_domain():
    evaluation = Evaluation(SCHEMA.model_copy(update={"activity": None}), MetricSettings())
    assert evaluation.extra == ()
    draw = np.random.default_rng(2)
    kept = [[], [], []]
    for offsets in ([0, 30, 50], [0, 0, 20], [0, 10, 10]):
        rows = offsets[-1]
        label, user, weight = draw.integers(0, 2, (rows, 3)), draw.integers(0, 5, rows), draw.integers(1, 4, rows)
        score = draw.random((rows, 3)).astype(np.float32)
        for task, domain in enumerate(TASK_DOMAIN):
            mine = slice(offsets[domain], offsets[domain + 1])
            kept[task].append((score[mine, task], label[mine, task], user[mine], weight[mine]))
            score[: mine.start, task] = score[mine.stop :, task] = math.nan
        evaluation.update(batch_of(offsets, label, weight, user), torch.from_numpy(score).requires_grad_())
    report = evaluation.compute(None)
    assert list(report["eval"]) == ["click@product", "redeem@coupon", "view@coupon"]
    for task, found in zip(kept, report["eval"].values(), strict=True):
        assert found == binary_metrics(*(np.concatenate(column) for column in zip(*task, strict=True))).as_dict()
    assert report["slices"] == {"click@product": {}, "redeem@coupon": {}, "view@coupon": {}}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_slices():
    slices = {"campaign": {"A": [1], "B and C": [2, 3]}, "store": None}
    evaluation = Evaluation(SCHEMA, validate(MetricSettings, {"slices": slices}, "run.yaml"))
    assert evaluation.extra == ("recent_clicks", "campaign", "store")
    activity = [0, 9, 10, 29, 10, 9]
    extra = np.array([activity, [1, 2, 3, 4, 1, 1], [-5, -5, 8, 8, 8, 8]]).T
    score, label = np.array([0.1, 0.9, 0.8, 0.4, 0.3, 0.6]), np.array([0, 1, 1, 0, 0, 1])
    label_BT, score_BT = (torch.from_numpy(column)[:, None].expand(6, 3) for column in (label, score))
    evaluation.update(batch_of([0, 0, 6], label_BT, user=[1, 1, 1, 2, 2, 2], extra=extra), score_BT)
    report = evaluation.compute(None)

    def of(*rows):
        index = list(rows)
        return binary_metrics(score[index], label[index], np.array([1, 1, 1, 2, 2, 2])[index]).as_dict()

    assert report["eval"]["redeem@coupon"] == of(0, 1, 2, 3, 4, 5)
    assert report["slices"]["redeem@coupon"] == {
        "activity": {"<10": of(0, 1, 5), "10-30": of(2, 3, 4)},
        "campaign": {"A": of(0, 4, 5), "B and C": of(1, 2)},
        "store": {"-5": of(0, 1), "8": of(2, 3, 4, 5)},
    }
    assert report["eval"]["click@product"]["rows"] == 0
    assert report["slices"]["click@product"] == {"activity": {}, "campaign": {}, "store": {}}


def test_activity_bounds():
    evaluation = Evaluation(SCHEMA, MetricSettings())
    extra = np.array([[0], [9], [10], [29], [29], [30], [31], [1000], [99], [-1]])
    evaluation.update(batch_of([0, 10, 10], torch.ones(10, 3), extra=extra), torch.full((10, 3), 0.5))
    groups = evaluation.compute(None)["slices"]["click@product"]["activity"]
    assert {name: group["rows"] for name, group in groups.items()} == {"<10": 2, "10-30": 3, ">=30": 4}


def test_rows_without_a_value_are_reported_on_request_only():
    slices = {"store": None, "size": {"small": [1], "unknown": [-1]}}
    evaluation = Evaluation(SCHEMA.model_copy(update={"activity": None}), MetricSettings(slices=slices))
    extra = np.array([[5, -1], [-1, -1], [-1, 1]])
    evaluation.update(batch_of([0, 3, 3], torch.ones(3, 3), extra=extra), torch.full((3, 3), 0.5))
    found = evaluation.compute(None)["slices"]["click@product"]
    rows = {column: {name: group["rows"] for name, group in groups.items()} for column, groups in found.items()}
    assert rows == {"store": {"5": 1}, "size": {"small": 1, "unknown": 2}}


def test_the_activity_column_may_be_sliced_by_too():
    evaluation = Evaluation(SCHEMA, MetricSettings(slices={"recent_clicks": {"none": [0]}}))
    assert evaluation.extra == ("recent_clicks",)


def test_scores_that_are_not_finite_name_task_and_rows():
    evaluation = Evaluation(SCHEMA.model_copy(update={"activity": None}), MetricSettings())
    score = torch.full((4, 3), 0.5)
    score[2, 1], score[3, 1] = math.inf, math.nan
    evaluation.update(batch_of([0, 2, 4], torch.ones(4, 3)), score)
    with pytest.raises(UserError, match="task 'redeem@coupon': in 2 rows a score is NaN or infinite"):
        evaluation.compute(None)


def test_too_many_values_to_slice_by():
    evaluation = Evaluation(SCHEMA.model_copy(update={"activity": None}), MetricSettings(slices={"store": None}))
    rows = 1001
    evaluation.update(
        batch_of([0, rows, rows], torch.ones(rows, 3), extra=np.arange(rows)[:, None]), torch.full((rows, 3), 0.5)
    )
    with pytest.raises(UserError, match=r"column 'store' has more than 1000 values.*slices: \{store:"):
        evaluation.compute(None)


def test_settings_are_strict():
    with pytest.raises(UserError, match="has the name under which the schema's activity column, 'recent_clicks'"):
        Evaluation(SCHEMA, MetricSettings(slices={"activity": None}))
    for bad in ({"slices": {"store": {}}}, {"slices": {"store": {"A": []}}}, {"slice": {}}):
        with pytest.raises(UserError, match=r"^run\.yaml: "):
            validate(MetricSettings, bad, "run.yaml")


def test_views_are_further_predictions_of_a_task():
    evaluation = Evaluation(WEIGHTED, MetricSettings(), {"view@coupon/alone": "view@coupon"})
    draw = np.random.default_rng(3)
    label, user, weight = draw.integers(0, 2, (40, 3)), draw.integers(0, 5, 40), draw.integers(1, 4, 40)
    score = draw.random((40, 4))
    evaluation.update(batch_of([0, 10, 40], label, weight, user), torch.from_numpy(score))
    report = evaluation.compute(None)
    mine = slice(10, 40)
    expected = binary_metrics(score[mine, 3], label[mine, 2], user[mine], weight[mine]).as_dict()
    assert report["eval"]["view@coupon/alone"] == expected != report["eval"]["view@coupon"]
    assert list(report["eval"]) == ["click@product", "redeem@coupon", "view@coupon", "view@coupon/alone"]


def test_metrics_are_also_given_with_every_row_counting_once():
    evaluation = Evaluation(WEIGHTED, MetricSettings())
    draw = np.random.default_rng(4)
    label, user, weight = draw.integers(0, 2, (30, 3)), draw.integers(0, 5, 30), draw.integers(1, 9, 30)
    score = draw.random((30, 3))
    evaluation.update(batch_of([0, 30, 30], label, weight, user), torch.from_numpy(score))
    report = evaluation.compute(None)
    assert report["unweighted"]["click@product"] == binary_metrics(score[:, 0], label[:, 0], user).as_dict()
    assert report["eval"]["click@product"] == binary_metrics(score[:, 0], label[:, 0], user, weight).as_dict()
    assert report["eval"]["click@product"]["auc"] != report["unweighted"]["click@product"]["auc"]


def test_without_weights_there_is_one_report():
    evaluation = Evaluation(SCHEMA.model_copy(update={"activity": None}), MetricSettings())
    evaluation.update(batch_of([0, 2, 4], torch.ones(4, 3)), torch.full((4, 3), 0.5))
    assert evaluation.compute(None)["unweighted"] == {}
