"""What EXIT transfers, summed by scene: by hand."""

import numpy as np
import pytest
import torch

from tests.support.batches import batch_of
from tests.support.placements import SCHEMA
from torchrec_xd.diagnostics.transfer import BINS, TransferByScene
from torchrec_xd.outputs import Output
from torchrec_xd.reports.run_report import save_report
from torchrec_xd.schema import Schema

FIT = {"search": "fit_search@home", "map": "fit_map@home"}


@pytest.fixture
def summed():
    """Three rows of the target, one of them in no known slot."""
    names = [task["label"] + "@" + task["domain"] for task in SCHEMA["tasks"]]
    schema = Schema.model_validate(SCHEMA)
    diagnostic = TransferByScene(schema, "click@home", "click@home/target", FIT)
    label_BT = torch.zeros(3, len(names))
    label_BT[:, names.index("click@home")] = torch.tensor([1.0, 0.0, 1.0])
    batch = batch_of((0, 0, 3), label_BT, weight=[2.0, 1.0, 1.0])
    batch.label_BT[:] = label_BT  # `batch_of` knows the domains of another schema
    score = {
        "fit_search@home": torch.tensor([0.0, 1.0, 0.26]),
        "fit_map@home": torch.tensor([0.5, 0.5, 0.5]),
        "click@home/target": torch.tensor([0.5, 0.5, 0.2]),
        "click@home": torch.tensor([0.75, 0.75, 1.4]),
    }
    columns = {"slot": torch.tensor([1, 1, -1]), "place": torch.tensor([0, 1, 1])}
    assert diagnostic.integer_columns() == ("slot", "place")
    diagnostic.update(batch, Output(score, {}, {}), columns)
    return diagnostic


def test_transfer_probabilities_fall_into_bins_by_scene(summed):
    slots, places = (summed.values()["scenes"][scene] for scene in ("slot", "place"))
    (only,) = slots
    assert (only["value"], only["rows"]) == (1, 2)
    assert only["sources"]["search"]["histogram"] == [1, *[0] * (BINS - 2), 1]
    assert only["sources"]["search"]["mean"] == 0.5
    assert only["sources"]["map"]["histogram"][BINS // 2] == 2
    assert [line["value"] for line in places] == [0, 1]
    assert places[1]["sources"]["search"]["histogram"][5] == 1
    assert sum(sum(line["sources"]["search"]["histogram"]) for line in places) == 3


def test_gains_and_losses_of_likelihood(summed):
    gain, loss = np.log(0.75 / 0.5), np.log(0.25 / 0.5)
    slots, places = (summed.values()["scenes"][scene] for scene in ("slot", "place"))
    (only,) = slots
    assert (only["positive"], only["helped"], only["hurt"]) == (0.5, 0.5, 0.5)
    assert only["gain_of_positives"] == pytest.approx(gain)
    assert only["gain_of_negatives"] == pytest.approx(loss)
    assert only["weighted_gain"] == pytest.approx((2 * gain + loss) / 3)
    assert places[1]["gain_of_positives"] == pytest.approx(np.log(1 / 0.2), abs=1e-6)  # P is truncated to 1
    assert places[0]["gain_of_negatives"] is None


def test_the_truth_is_averaged_where_rows_carry_it(summed):
    assert summed.values()["scenes"]["slot"][0]["sources"]["search"]["true_mean"] is None
    summed.passed_KV["slot"][:] = 0  # only the truth of further rows matters here
    truth = torch.tensor([0.25, 0.75, 0.5])
    label_BT = torch.ones(3, len(SCHEMA["tasks"]))
    batch = batch_of((0, 0, 3), label_BT)
    batch.label_BT[:] = label_BT
    score = dict.fromkeys((*FIT.values(), "click@home", "click@home/target"), torch.full((3,), 0.5))
    columns = {"slot": torch.tensor([2, 2, 2]), "place": torch.tensor([0, 0, 0])}
    columns |= {"prob_transfer_search": truth, "prob_transfer_map": truth}
    summed.update(batch, Output(score, {}, {}), columns)
    slot = summed.values()["scenes"]["slot"][1]
    assert (slot["value"], slot["sources"]["search"]["true_mean"]) == (2, pytest.approx(0.5))


def test_the_report_shows_metrics_and_scenes(summed, tmp_path):
    result = {"auc": 0.5, "gauc": None, "logloss": 0.1, "ne": 1.0, "calibration": 1.0, "rows": 3, "positives": 2}
    report = {"eval": {"click@home": result}, "unweighted": {}, "slices": {"click@home": {"slot": {"<1": result}}}}
    save_report(tmp_path / "r.html", "run", report, [summed])
    text = (tmp_path / "r.html").read_text()
    for shown in ("By slot", "P_tr from map", "click@home by slot", "<td>&lt;1</td><td>0.5000</td><td>–</td>"):
        assert shown in text
    cells = ["1", "2", "0.500", "0.500", "0.500", "0.500", "0.500", "+0.4055"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in text
