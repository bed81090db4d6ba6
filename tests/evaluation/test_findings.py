"""What a report's numbers hide, in plain words."""

import numpy as np
import pytest

from torchrec_xd.evaluation.findings import findings
from torchrec_xd.evaluation.metrics import binary_metrics


def report(score, label, user, name="click@a", **more):
    found = binary_metrics(np.array(score, dtype=float), np.array(label), np.array(user)).as_dict()
    return {"eval": {name: found, **more}, "unweighted": {}, "slices": {name: {}}}


GOOD = report([0.9, 0.1, 0.6, 0.2], [1, 0, 1, 0], [1, 1, 2, 2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GOOD, []),
        (
            report([0.5] * 1234, [1] * 1234, [0] * 1234),
            ["all 1,234 rows are positive: AUC, GAUC and NE are undefined"],
        ),
        (
            report([0.5] * 3, [0] * 3, [0] * 3),
            ["none of the 3 rows is positive: AUC, GAUC, NE and calibration are undefined"],
        ),
        (report([0.9, 0.1], [1, 0], [1, 2]), ["no user has both positive and negative rows: GAUC is undefined"]),
        # ln(1 / .1) over ln 2 = 3.32
        (report([0.1, 0.9], [1, 0], [1, 1]), ["NE 3.3219: worse than predicting the mean for every row"]),
        (report([0.5, 0.5], [1, 0], [1, 1]), []),  # the mean itself
    ],
)
def test_findings(given, said):
    assert findings(given) == [f"task click@a: {fault}" for fault in said]


def test_scores_that_are_no_probabilities_may_be_worse_than_a_constant():
    assert findings(report([7, 9, 3], [1, 0, 0], [1, 1, 1]), probabilities=False) == []


def test_tasks_without_rows_share_a_line():
    none = report([], [], [])["eval"]["click@a"]
    given = report([0.9, 0.1], [1, 0], [1, 1], **{"click@b": none, "click@c": none})
    assert findings(given) == ["no rows of click@b, click@c in this split: nothing is measured there"]


def test_every_task_is_named_and_auxiliary_scores_are_not():
    bad = report([0.1, 0.9], [1, 0], [1, 1])["eval"]["click@a"]
    given = report([0.1, 0.9], [1, 0], [1, 1], **{"click@b": bad, "click@a/target": bad})
    assert [line.split(":")[0] for line in findings(given)] == ["task click@a", "task click@b"]
