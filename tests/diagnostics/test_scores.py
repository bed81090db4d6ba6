"""Predictions worse than a constant are named, others are not: on numbers where the fault is planted."""

import numpy as np
import pytest
import torch

from tests.support.batches import batch_of
from tests.support.placements import SCHEMA
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.scores import ScoreMetrics
from torchrec_xd.outputs import Output
from torchrec_xd.schema import Schema

TASK = "click@home"
NAMES = [f"{task['label']}@{task['domain']}" for task in SCHEMA["tasks"]]


def measured(score, label, weight=None):
    diagnostic = ScoreMetrics(Schema.model_validate(SCHEMA), [TASK])
    label_BT = torch.zeros(len(label), len(NAMES))
    label_BT[:, NAMES.index(TASK)] = torch.tensor(label)
    batch = batch_of((0, 0, len(label)), label_BT, weight=weight)
    batch.label_BT[:] = label_BT  # `batch_of` knows the domains of another schema
    diagnostic.update(batch, Output({TASK: torch.tensor(score)}, {}, {}), {})
    return diagnostic


def test_normalised_entropy_by_hand_with_weights():
    task = measured([0.5, 0.8], [1.0, 0.0], [3.0, 1.0]).values()["tasks"][TASK]
    loss, constant = 3 * np.log(2) + np.log(5), 3 * np.log(4 / 3) + np.log(4)
    assert task["ne"] == pytest.approx(loss / constant)
    assert task["excess"] == pytest.approx((loss - constant) / 4)
    assert (task["auc"], task["rows"], task["positives"]) == (0.0, 2, 1)


@pytest.mark.parametrize(
    ("score", "weight", "found"),
    [
        ([0.4, 0.4, 0.3, 0.1] * 25, None, False),  # better than the share, .25
        ([0.9, 0.9, 0.8, 0.7] * 25, None, True),  # ranks as well, far too high
        ([0.25] * 100, None, False),  # the constant itself
        ([0.4, 0.4, 0.3, 0.1] * 25, [1.0, 50.0, 50.0, 50.0] * 25, True),  # sampled negatives count
        ([0.1] + [0.25] * 99, None, False),  # above 1 by no more than chance
    ],
)
def test_predictions_worse_than_the_share_of_positives_are_named(score, weight, found):
    diagnostic = measured(score, [1.0, 0.0, 0.0, 0.0] * 25, weight)
    values = diagnostic.values()
    named = diagnostic.findings(values)
    assert [each.name for each in named] == ["worse_than_constant"] * found
    if found:
        assert f"{TASK}: NE {values['tasks'][TASK]['ne']:.3f} over 100 rows" in named[0].text
        assert "trainer.weighted: true" in named[0].remedy


def test_without_positives_nothing_is_said():
    diagnostic = measured([0.9] * 4, [0.0] * 4)
    values = diagnostic.values()
    assert values["tasks"][TASK]["ne"] is None
    assert diagnostic.findings(values) == []


def test_a_finding_as_a_line():
    assert str(Finding("gate_shut", "gate a: 0.01 of 0.05", "more rows")) == (
        "gate_shut: gate a: 0.01 of 0.05. Try: more rows"
    )
