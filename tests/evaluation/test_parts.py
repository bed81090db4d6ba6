"""Metrics that are computed in parts equal those of all rows at once, and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.batches import SCHEMA, batch_of
from tests.support.slow_metrics import equal, predictions, slow_auc, slow_gauc
from torchrec_xd.evaluation import metrics, routing
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings, binary_metrics
from torchrec_xd.evaluation.row_quantities import ascending

WEIGHTED = SCHEMA.model_copy(update={"activity": None, "weight": "w"})
DTYPES = [np.float32, np.float64]


@given(predictions(), st.sampled_from([1, 4, 17]), st.sampled_from([3, 100]), st.booleans(), st.sampled_from(DTYPES))
def test_in_parts_as_in_one(given_rows, part_rows, slab_rows, whole, dtype):
    score, label, user, weight = given_rows
    score, weight = score.astype(dtype), np.ones_like(weight) if whole else weight
    expected = binary_metrics(score, label, user, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "PART_ROWS", part_rows)
        patch.setattr(metrics, "SLAB_ROWS", slab_rows)
        assert equal(binary_metrics(score, label, user, weight), expected)
    assert expected.auc == pytest.approx(slow_auc(score, label, weight), nan_ok=True)
    assert expected.gauc == pytest.approx(slow_gauc(score, label, user, weight)[0], nan_ok=True)


KEYS = {
    "float32": st.lists(st.floats(width=32, allow_nan=False)).map(lambda keys: np.array(keys, dtype=np.float32)),
    "float64": st.lists(st.floats(allow_nan=False)).map(lambda keys: np.array(keys, dtype=np.float64)),
    "near": st.lists(st.integers(-5, 5)).map(lambda keys: np.array(keys, dtype=np.int64)),
    "far": st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda keys: np.array(keys, dtype=np.int64)),
    "unsigned": st.lists(st.integers(0, 2**32 - 1)).map(lambda keys: np.array(keys, dtype=np.uint32)),
    "short": st.lists(st.integers(-(2**15), 2**15 - 1)).map(lambda keys: np.array(keys, dtype=np.int16)),
}


@pytest.mark.parametrize("name", KEYS)
@given(st.data())
def test_ascending_is_a_stable_argsort(name, data):
    key = data.draw(KEYS[name])
    found = ascending(key)
    assert np.array_equal(key[found], np.sort(key))
    if not name.startswith("float"):  # of floats, -0 comes before 0
        assert np.array_equal(found, np.argsort(key, kind="stable"))


@settings(max_examples=50, deadline=None)
@given(predictions(), st.sampled_from([1, 7, 1000]), st.sampled_from([2, 9, 1000]), st.integers(1, 5))
def test_slices_and_unweighted_metrics_in_parts_equal_those_of_their_rows(data, part_rows, slab_rows, batch_rows):
    score, label, user, weight = data
    weight = weight.astype(np.float32)
    group = np.arange(len(score)) % 3
    evaluation = Evaluation(WEIGHTED, MetricSettings(slices={"group": None}))
    for start in range(0, len(score), batch_rows):
        at = slice(start, start + batch_rows)
        rows = len(score[at])
        label_BT, score_BT = (torch.from_numpy(column[at])[:, None].expand(rows, 3) for column in (label, score))
        batch = batch_of([0, rows, rows], label_BT, weight[at], user[at], group[at][:, None])
        evaluation.update(batch, score_BT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "PART_ROWS", part_rows)
        patch.setattr(metrics, "SLAB_ROWS", slab_rows)
        report = evaluation.compute(None)

    def close(found, rows, weight):
        expected = binary_metrics(score[rows], label[rows], user[rows], weight[rows]).as_dict()
        assert found == {
            name: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            for name, value in expected.items()
        }

    every = np.arange(len(score))
    close(report["eval"]["click@product"], every, weight)
    close(report["unweighted"]["click@product"], every, np.ones(len(score)))
    found = report["slices"]["click@product"]["group"]
    assert list(found) == [str(value) for value in np.unique(group)]
    for value, result in found.items():
        close(result, np.flatnonzero(group == int(value)), weight)


GREATEST = {np.bool_: 1, np.int8: 127, np.uint8: 255, np.int16: 2**15 - 1, np.int32: 2**31 - 1, np.int64: 2**53}


@pytest.mark.parametrize(("kind", "greatest"), [*GREATEST.items(), (np.float16, 2048), (np.float64, 2**53)])
def test_scores_of_any_type_of_number(kind, greatest) -> None:
    """Neighbours that a type of fewer digits would make equal."""
    score = np.array([greatest - 1, greatest, greatest - 1, greatest]).astype(kind)
    assert binary_metrics(score, np.array([0, 1, 0, 1]), np.arange(4)).auc == 1.0
