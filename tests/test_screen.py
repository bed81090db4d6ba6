"""What commands print of a report."""

import numpy as np

from torchrec_xd.cli.screen import show_report
from torchrec_xd.evaluation.metrics import Report, binary_metrics


def test_a_report_is_followed_by_what_its_numbers_hide(capsys):
    good = binary_metrics(np.array([0.9, 0.1]), np.array([1, 0]), np.ones(2)).as_dict()
    bad = binary_metrics(np.full(1234, 0.5), np.ones(1234), np.ones(1234)).as_dict()
    results = {"click@good": good, "click@bad": bad}
    show_report(Report(eval=results, unweighted={}, slices={name: {} for name in results}), "a run")
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "warning: task click@bad: all 1,234 rows are positive: AUC, GAUC and NE are undefined"
