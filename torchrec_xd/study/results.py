"""What came out of a study's cells: metrics by seed, verdicts against the reference, distance to the oracle, cost."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.findings import findings
from torchrec_xd.evaluation.metrics import Report
from torchrec_xd.study.cells import MANIFEST
from torchrec_xd.study.design import Study
from torchrec_xd.study.scores import Outside
from torchrec_xd.study.verdicts import Scored, verdicts

METRICS = ("auc", "gauc", "logloss", "ne", "calibration")
PACKAGES = ("torchrec-xd", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy")


def study_results(name: str, study: Study, done: Sequence[Scored], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The content of results.json.

    Args:
        name: of the study.
        study: what was compared.
        done: finished cells, and models from outside; a model is compared on the seeds that it and the reference have.
        warnings: what was found before.

    Raises:
        UserError: scores that are not of the test rows.
    """
    shown = [cell for cell in done if cell.task is not None]
    decided = [verdicts(study, [cell for cell in shown if cell.data == label]) for label in study.data]
    return {
        "study": name,
        "reference": study.reference,
        "seeds": study.seeds,
        "samples": study.samples,
        "tasks": {label: data.task for label, data in study.data.items()},
        "cells": [_row(cell) for cell in shown],
        "verdicts": [line for found in decided for line in found.whole],
        "slice_verdicts": [line for found in decided for line in found.slices],
        "oracle": _oracles(shown),
        "warnings": [*warnings, *_findings(shown)],
        "versions": versions(),
        "hardware": hardware(),
    }


def _row(cell: Scored) -> dict[str, Any]:
    """A cell in numbers."""
    assert cell.task is not None
    content = cell.metrics()
    measured = content["eval"][cell.task]
    return {
        "model": cell.model,
        "data": cell.data,
        "seed": cell.seed,
        **{metric: measured[metric] for metric in METRICS},
        "rows": measured["rows"],
        "positives": measured["positives"],
        **_cost(content["train"]),
        "groups": {**content["slices"][cell.task], **_further(content, cell.task)},
    }


def _cost(train: dict[str, Any] | None) -> dict[str, Any]:
    """What training took: unknown of models from outside, and of runs that were stopped when it was over."""
    if train is None:
        return dict.fromkeys(("rows_per_second", "parameters", "peak_memory_bytes"))
    peaks = [rank["peak_memory_bytes"] for rank in train["ranks"]]
    return {
        "rows_per_second": train["rows_per_second"],
        "parameters": train["parameters"],
        "peak_memory_bytes": None if train["rows_per_second"] is None else max(peaks),
    }


def _further(content: dict[str, Any], task: str) -> dict[str, Any]:
    """What else is known of a task, as groups: its auxiliary scores, and metrics with every row counting once."""
    auxiliary = {
        name.partition("/")[2]: found for name, found in content["eval"].items() if name.startswith(f"{task}/")
    }
    further = {"auxiliary score": auxiliary, "row weights": {"each row once": content["unweighted"].get(task)}}
    return {name: found for name, found in further.items() if any(found.values())}


def _findings(cells: Sequence[Scored]) -> list[str]:
    """What the metrics of the compared tasks hide, each with its models; NE is the mean over seeds."""
    found: dict[str, list[str]] = {}
    for data, model in dict.fromkeys((cell.data, cell.model) for cell in cells):
        of = [cell for cell in cells if (cell.data, cell.model) == (data, model)]
        task = str(of[0].task)
        seeds = [cell.metrics()["eval"][task] for cell in of]
        known = [seed["ne"] for seed in seeds if seed["ne"] is not None]
        report = Report(eval={task: {**seeds[0], "ne": fmean(known) if known else None}}, unweighted={}, slices={})
        for line in findings(report, probabilities=not isinstance(of[0], Outside)):
            found.setdefault(f"{data}: {line}", []).append(model)
    return [f"{line} ({', '.join(models)})" for line, models in found.items()]


def _oracles(cells: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Data set to the best metrics that its test rows allow, where its manifest knows them: on planted worlds."""
    found = {}
    for cell in cells:
        path = Path(cell.schema.root) / MANIFEST
        if cell.data not in found and path.is_file():
            found[cell.data] = _oracle(path).get(str(cell.task), {})
    return {data: oracle for data, oracle in found.items() if oracle}


def _oracle(path: Path) -> dict[str, dict[str, float]]:
    try:
        oracle: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")).get("oracle", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; prepare the data again") from None
    return oracle


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version(), **{name: found for name in PACKAGES if (found := _version(name))}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware() -> str:
    """Of this machine."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB"
