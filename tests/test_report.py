"""What EXIT transfers, tallied by scene: by hand."""

import numpy as np
import pytest

from torchrec_xd.reports.run_report import NUM_BINS, TransferTally, save_report


def tally():
    found = TransferTally(["search", "map"], {"slot": 3, "place": 2})
    found.update(
        np.array([[0.0, 0.5], [1.0, 0.5], [0.26, 0.5]]),
        np.array([0.5, 0.5, 0.2]),
        np.array([0.75, 0.75, 1.4]),
        {
            "label": np.array([1, 0, 1]),
            "weight": np.array([2.0, 1.0, 1.0]),
            "slot": np.array([1, 1, -1]),
            "place": np.array([0, 1, 1]),
        },
    )
    return found


def test_transfer_probabilities_fall_into_bins_by_scene():
    found = tally().histogram
    assert found["slot"][0, 1].tolist() == [1.0, *[0.0] * (NUM_BINS - 2), 1.0]
    assert found["slot"][1, 1, NUM_BINS // 2] == 2
    assert found["slot"].sum() == 4
    assert found["place"][0, 1, 5] == 1
    assert found["place"].sum() == 6


def test_gains_and_losses_of_likelihood():
    gain, loss = np.log(0.75 / 0.5), np.log(0.25 / 0.5)
    rows, positives, helped, hurt, gained, lost, weight, net, passed = tally().sums["slot"][1]
    assert (rows, positives, helped, hurt, weight, passed) == (2, 1, 1, 1, 3, 1.0)
    assert gained == pytest.approx(gain)
    assert lost == pytest.approx(loss)
    assert net == pytest.approx(2 * gain + loss)
    truncated = tally().sums["place"][1][4]
    assert truncated == pytest.approx(np.log(1 / 0.2), abs=1e-6)


def test_the_page_shows_both(tmp_path):
    result = {"auc": 0.5, "gauc": None, "logloss": 0.1, "ne": 1.0, "calibration": 1.0, "rows": 3, "positives": 2}
    report = {"eval": {"click@home": result}, "unweighted": {}, "slices": {"click@home": {"slot": {"<1": result}}}}
    save_report(tmp_path / "r.html", "run", report, tally())
    text = (tmp_path / "r.html").read_text()
    for said in ("By slot", "P_tr from map", "click@home by slot", "<td>&lt;1</td><td>0.5000</td><td>–</td>"):
        assert said in text
    assert "<td>1</td><td>2</td><td>0.500</td><td>0.500</td><td>0.500</td><td>0.500</td><td>+0.4055</td>" in text
