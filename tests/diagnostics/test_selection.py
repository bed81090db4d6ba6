"""EXIT's faults by name: each where it is planted, and not where it is not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.batches import batch_of
from tests.support.placements import SCHEMA
from torchrec_xd.diagnostics.selection import Selection, auc_with_error
from torchrec_xd.diagnostics.selection_findings import all_findings
from torchrec_xd.outputs import Output
from torchrec_xd.schema import Schema

LABELS = [f"{task['label']}@{task['domain']}" for task in SCHEMA["tasks"]]
SOURCES = {"search": ("wanted_search@home", "fit_search@home")}
ROWS = 4000


def planted(seed=0, *, wanted_share=0.4, own_share=0.1):
    """Rows of which what is fit hangs on the slot, and a prediction that knows it; changed by the tests."""
    random = np.random.default_rng(seed)
    slot = random.integers(4, size=ROWS)
    passed = np.array([0.1, 0.3, 0.6, 0.9])[slot]
    wanted, fit = random.random(ROWS) < wanted_share, random.random(ROWS) < passed
    alone = own_share * 2 * random.random(ROWS)
    label = (random.random(ROWS) < alone) | (wanted & fit)
    return SimpleNamespace(
        slot=slot,
        wanted=wanted,
        fit=fit,
        label=label,
        alone=alone,
        passed=passed,
        whole=alone + np.where(wanted, 0.9, 0.1) * passed,
        user=random.integers(200, size=ROWS),
        weight=np.ones(ROWS),
    )


def fed(rows, training=None, *, every=False, **settings):
    """Findings by name, and the values they rest on."""
    diagnostic = Selection(Schema.model_validate(SCHEMA), "click@home", "click@home/target", SOURCES, **settings)

    def output(rows):
        label_BT = torch.zeros(ROWS, len(LABELS))
        given = {"click@home": rows.label, "wanted_search@home": rows.wanted, "fit_search@home": rows.fit}
        for name, column in given.items():
            label_BT[:, LABELS.index(name)] = torch.tensor(column, dtype=torch.float32)
        batch = batch_of((0, 0, ROWS), label_BT, weight=rows.weight, user=rows.user.tolist())
        batch.label_BT[:] = label_BT  # `batch_of` knows the domains of another schema
        score = {"click@home": rows.whole, "click@home/target": rows.alone, "fit_search@home": rows.passed}
        return batch, Output({name: torch.tensor(column) for name, column in score.items()}, {}, {})

    columns = {"slot": torch.tensor(rows.slot), "place": torch.full((ROWS,), -1)}
    assert diagnostic.integer_columns() == ("slot", "place")
    diagnostic.update(*output(rows), columns)
    if training is not None:
        diagnostic.update_training(*output(training))
    values = diagnostic.values()
    found = diagnostic.findings(values)
    assert diagnostic.parts(values)
    if every:
        return found, values
    return {finding.name: finding for finding in found}, values


def test_nothing_is_said_where_all_is_well():
    found, values = fed(planted(), planted(1))
    assert found == {}
    assert values["whole"]["verdict"] == "better"
    assert [line["value"] for line in values["scenes"]] == sorted(range(4), key=lambda v: -(planted().slot == v).sum())
    source = values["sources"]["search"]
    assert source["wanted"] == planted().wanted.sum()
    assert source["fit_share"] == pytest.approx(planted().fit[planted().wanted].mean())


def test_a_selector_that_lets_nothing_pass_has_collapsed():
    rows = planted()
    rows.passed = rows.passed * 0.05
    found, values = fed(rows)
    source = values["sources"]["search"]
    assert f"mean P_tr from 'search' is {source['mean']:.4f}" in found["transfer_collapsed"].text
    assert "transfer_error: cross_entropy" in found["transfer_collapsed"].remedy


def test_a_selector_that_says_one_number_has_collapsed_unless_it_is_one():
    rows = planted()
    rows.passed = np.full(ROWS, 0.5)
    assert "standard deviation of 0.0000" in fed(rows)[0]["transfer_collapsed"].text
    assert "transfer_collapsed" not in fed(rows, learned=False)[0]


def test_a_selector_better_on_training_rows_remembers():
    training = planted(1)
    training.passed = np.where(training.fit, 0.7, 0.3) + 0.2 * np.random.default_rng(2).random(ROWS)
    found, values = fed(planted(), training)
    assert list(found) == ["selector_remembers"]
    quality = values["sources"]["search"]
    assert quality["training"]["auc"] == 1.0
    assert (
        f"AUC 1.000 for what fits on training rows and {quality['here']['auc']:.3f}" in found["selector_remembers"].text
    )
    assert fed(planted())[1]["sources"]["search"]["training"] is None  # the training split itself is diagnosed


def test_a_prediction_that_ranks_below_its_own_target_tower_is_named_where_it_does():
    rows = planted()
    rows.alone = rows.whole.copy()
    rows.whole = rows.alone + np.where(rows.slot == 1, np.random.default_rng(3).random(ROWS), 0.0)
    found, values = fed(rows)
    scene = found["transfer_hurts_in_scene"]
    assert scene.text.startswith("in 1 of 4 values of scenes the AUC of P is below that of P_t")
    assert "by 0.0005 or more: slot 1 by 0." in scene.text
    assert {line["value"]: line["verdict"] for line in values["scenes"]}[0] == "can't tell"
    assert "transfer_hurts" in found
    rows.whole = rows.alone + 1e-4 * np.random.default_rng(3).standard_normal(ROWS)
    found, _ = fed(rows)
    assert list(found) == ["not_told_apart_from_target_alone"]


def test_rows_without_weight_do_not_count():
    """P is worse on slot 1, whose rows weigh nothing: not a verdict, and not a share, hangs on them."""
    rows = planted()
    rows.alone = rows.whole.copy()
    rows.whole = rows.alone + np.where(rows.slot == 1, np.random.default_rng(3).random(ROWS), 0.0)
    rows.weight = np.where(rows.slot == 1, 0.0, 2.0)
    found, values = fed(rows, rows)
    assert list(found) == ["not_told_apart_from_target_alone"]
    assert {line["value"]: line["verdict"] for line in values["scenes"]}[1] == "one class"
    kept = rows.slot != 1
    wanted, fits = rows.wanted & kept, rows.wanted & rows.fit & kept
    source = values["sources"]["search"]
    assert source["fit_share"] == pytest.approx(rows.fit[wanted].mean())
    assert source["mean"] == pytest.approx(rows.passed[wanted].mean())
    assert (
        source["here"]
        == source["training"]
        == auc_with_error(rows.passed[wanted], rows.fit[wanted], np.ones(wanted.sum()))
    )
    assert values["extra_share"] == pytest.approx(fits.sum() / (fits.sum() + rows.label[kept].sum()))


def test_many_scenes_make_one_finding_and_trifles_none():
    lines = [
        {"scene": "slot", "value": i, "rows": 9, "delta": -0.001 * i, "low": -0.1, "high": -0.0001} for i in range(8)
    ]
    lines = [{**line, "verdict": "worse"} for line in lines]
    whole = {"verdict": "worse", "delta": -0.0004, "low": -0.0005, "high": -0.0003, "users": 50}
    found = all_findings({"rows": 0, "sources": {}, "whole": whole, "scenes": lines})
    assert [finding.name for finding in found] == ["not_told_apart_from_target_alone", "transfer_hurts_in_scene"]
    assert "below 0.0005, which nobody would notice" in found[0].text
    assert "in 7 of 8 values of scenes" in found[1].text
    assert "slot 7 by 0.0070 (95 % from -0.1000 to -0.0001, 9 rows); slot 6" in found[1].text
    assert found[1].text.endswith("; and 2 more")


def test_a_prediction_that_ranks_wanted_rows_worse_is_named_though_they_weigh_little():
    """Sampled negatives: rows that nobody wants weigh 300, and decide the AUC of all rows."""
    rows = planted()
    rows.weight = np.where(rows.wanted, 1.0, 300.0)
    rows.alone = rows.whole.copy()
    rows.whole = rows.alone + np.where(rows.wanted, np.random.default_rng(3).random(ROWS), 0.0)
    found, values = fed(rows, every=True)
    hurts = [finding.text for finding in found if finding.name == "transfer_hurts"]
    assert values["sources"]["search"]["gain"]["verdict"] == "worse"
    assert hurts[-1].startswith("on rows wanted in 'search' the AUC of P differs by -0.")


def test_of_one_user_nothing_is_said_of_the_prediction():
    """AUC then has no interval, and no verdict."""
    rows = planted()
    rows.user[:] = 3
    rows.whole = rows.alone.copy()
    found, values = fed(rows)
    assert values["whole"]["verdict"] == "too few users"
    assert values["whole"]["low"] is None
    assert found == {}


@pytest.mark.parametrize("own_share", [0.1, 0.45])
def test_labels_without_a_premise_are_named(own_share):
    """Nothing is wanted; or more is than the first threshold, but next to nothing against the target's own clicks."""
    rows = planted(wanted_share=0.03, own_share=own_share)
    if own_share == 0.1:
        rows.wanted[:] = np.arange(ROWS) < 3
        assert "3 of 4,000 rows (0.07%) are wanted in 'search', less than 0.1%" in fed(rows, every=True)[0][0].text
    else:
        found, values = fed(rows)
        assert (
            f"{values['extra_share']:.1%} of the sum of the interest combination label" in found["premise_fails"].text
        )
    assert "premise_fails" not in fed(planted())[0]


def test_rows_of_one_class_are_no_fault_of_the_selector():
    rows = planted()
    rows.label, rows.fit = np.zeros(ROWS, dtype=bool), np.zeros(ROWS, dtype=bool)
    found, values = fed(rows)
    assert values["whole"]["verdict"] == "one class"
    assert found == {}


def test_the_error_of_an_auc_by_the_formula():
    score, label = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0.0, 1.0, 1.0])
    q1, q2 = 0.75 / 1.25, 2 * 0.5625 / 1.75
    variance = (0.1875 + (q1 - 0.5625) + (q2 - 0.5625)) / 4
    expected = {"auc": 0.75, "error": pytest.approx(variance**0.5)}
    assert auc_with_error(score, label, np.ones(4)) == expected
    assert auc_with_error(score, label, np.full(4, 3.0)) == expected  # weights say nothing if they are all alike
    assert auc_with_error(np.append(score, 0.9), np.append(label, 0.0), np.array([1.0, 1, 1, 1, 0])) == expected
    assert auc_with_error(np.array([0.5]), np.array([1.0]), np.ones(1)) is None


def test_the_error_of_a_weighted_auc_counts_fewer_rows():
    """Two positives of weights 1 and 3 tell as much as 16 / 10 rows; pairs of weight 7 of 8 are in order."""
    score, label = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0.0, 1.0, 1.0])
    found = auc_with_error(score, label, np.array([1.0, 1.0, 1.0, 3.0]))
    q1, q2 = 0.875 / 1.125, 2 * 0.875**2 / 1.875
    variance = (0.875 * 0.125 + 0.6 * (q1 - 0.875**2) + (q2 - 0.875**2)) / (1.6 * 2)
    assert found == {"auc": 0.875, "error": pytest.approx(variance**0.5)}
