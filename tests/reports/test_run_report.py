"""The page of a run says what its numbers hide."""

import numpy as np

from torchrec_xd.evaluation.metrics import Report, binary_metrics
from torchrec_xd.reports.run_report import save_report


def test_the_page_of_rows_of_one_class_says_so(tmp_path):
    found = binary_metrics(np.array([0.2, 0.3]), np.ones(2), np.arange(2)).as_dict()
    save_report(tmp_path / "page.html", "run", Report(eval={"click@a": found}, unweighted={}, slices={}))
    said = "<p>Warning: task click@a: all 2 rows are positive: AUC, GAUC and NE are undefined.</p>"
    assert said in (tmp_path / "page.html").read_text()
