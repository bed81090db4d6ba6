"""What the numbers of a report hide: metrics that are undefined, and why; predictions worse than a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchrec_xd.evaluation.metrics import Report
    from torchrec_xd.evaluation.spread_rows import ResultDict


def findings(report: Report, *, probabilities: bool = True) -> list[str]:
    """A line for every fault of rows or predictions that a report shows; none where all is well.

    Slices and auxiliary scores (`<task>/<name>`) are not looked at.

    Args:
        report: of one split.
        probabilities: whether scores are meant as such; if not, they may well be worse than a constant.
    """
    tasks = {name: result for name, result in report["eval"].items() if name.rpartition("/")[0] not in report["eval"]}
    empty = [name for name, result in tasks.items() if not result["rows"]]
    found = [f"no rows of {', '.join(empty)} in this split: nothing is measured there"] if empty else []
    return found + [f"task {name}: {fault}" for name in tasks for fault in _faults(tasks[name], probabilities)]


def training_findings(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """A line for every task whose training rows are of one class, or have no label.

    Args:
        counts: task to rows with its label and positive rows that were read, not one of them where none was read.
    """
    read = any(rows for rows, _ in counts.values())  # not so where a finished run was resumed
    kinds = {name: "positive" if positives else "negative" for name, (rows, positives) in counts.items()}
    return [
        f"task {name}: all {rows:,} training rows that were read are {kinds[name]}: there is nothing to tell apart"
        if rows
        else f"task {name}: no training row that was read has its label: it learnt nothing"
        for name, (rows, positives) in counts.items()
        if read and positives in (0, rows)
    ]


def _faults(result: ResultDict, probabilities: bool) -> list[str]:
    rows, positives, ne = result["rows"], result["positives"], result["ne"]
    if not rows:
        return []
    if not positives:
        return [f"none of the {rows:,} rows is positive: AUC, GAUC, NE and calibration are undefined"]
    if positives == rows:
        return [f"all {rows:,} rows are positive: AUC, GAUC and NE are undefined"]
    found = []
    if result["auc"] is not None and result["gauc"] is None:
        found.append("no user has both positive and negative rows: GAUC is undefined")
    if probabilities and ne is not None and round(ne, 4) > 1:
        found.append(f"NE {round(ne, 4)}: worse than predicting the mean for every row")
    return found
