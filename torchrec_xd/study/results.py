"""What came out of a study's cells: metrics by seed, verdicts against the reference, distance to the oracle, cost."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import psutil

from torchrec_xd.evaluation.significance import Metric, Resampled, compare, holm, resample, verdict
from torchrec_xd.study.cells import MANIFEST, Cell
from torchrec_xd.study.design import LEVEL, Study
from torchrec_xd.study.scores import Outside, read_scores, task_rows

Scored: TypeAlias = Cell | Outside
METRICS = ("auc", "gauc", "logloss", "ne", "calibration")
PACKAGES = ("torchrec-xd", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy")


def study_results(name: str, study: Study, done: Sequence[Scored]) -> dict[str, Any]:
    """The content of results.json.

    Args:
        name: of the study.
        study: what was compared.
        done: finished cells, and models from outside; a model is compared on the seeds that it and the reference have.

    Raises:
        UserError: scores that are not of the test rows.
    """
    shown = [cell for cell in done if cell.task is not None]
    return {
        "study": name,
        "reference": study.reference,
        "seeds": study.seeds,
        "samples": study.samples,
        "tasks": {label: data.task for label, data in study.data.items()},
        "cells": [_row(cell) for cell in shown],
        "verdicts": [
            line for label in study.data for line in _verdicts(study, [cell for cell in shown if cell.data == label])
        ],
        "oracle": _oracles(shown),
        "versions": _versions(),
        "hardware": _hardware(),
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
    """What training took; unknown of models from outside."""
    if train is None:
        return dict.fromkeys(("rows_per_second", "parameters", "peak_memory_bytes"))
    peaks = [rank["peak_memory_bytes"] for rank in train["ranks"]]
    return {
        "rows_per_second": train["rows_per_second"],
        "parameters": train["parameters"],
        "peak_memory_bytes": max(peaks),
    }


def _further(content: dict[str, Any], task: str) -> dict[str, Any]:
    """What else is known of a task, as groups: its auxiliary scores, and metrics with every row counting once."""
    auxiliary = {
        name.partition("/")[2]: found for name, found in content["eval"].items() if name.startswith(f"{task}/")
    }
    further = {"auxiliary score": auxiliary, "row weights": {"each row once": content["unweighted"].get(task)}}
    return {name: found for name, found in further.items() if any(found.values())}


def _verdicts(study: Study, cells: Sequence[Scored]) -> list[dict[str, Any]]:
    """Every model of one data set against the reference, corrected for all that is asked of these data."""
    by_model: dict[str, dict[int, Scored]] = {}
    for cell in cells:
        by_model.setdefault(cell.model, {})[cell.seed] = cell
    reference = by_model.pop(study.reference, {})
    common = {model: sorted(set(seeds) & set(reference)) for model, seeds in by_model.items()}
    if not any(common.values()):
        return []
    found = _resampled(study, cells)
    lines = []
    for model, seeds in common.items():
        for metric in study.metrics if seeds else ():
            of_model, of_reference = (
                _of_seeds([found[cell[seed].name, metric] for seed in seeds]) for cell in (by_model[model], reference)
            )
            comparison = compare(of_model, of_reference)
            where = {"model": model, "data": cells[0].data, "metric": metric, "seeds": len(seeds)}
            lines.append({**where, **asdict(comparison)})
    for line, adjusted in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = adjusted
        line["verdict"] = verdict(line["delta"], adjusted, metric=line["metric"], level=LEVEL)
    return lines


def _resampled(study: Study, cells: Sequence[Scored]) -> dict[tuple[str, Metric], Resampled]:
    """Cell and metric to its values on the same resamples of users."""
    schema, task = cells[0].schema, cells[0].task
    assert task is not None
    user, label, weight = task_rows(schema, task)
    scores = {cell.name: read_scores(cell.scores, schema, task, user) for cell in cells}
    return resample(scores, label, user, weight, metrics=study.metrics, samples=study.samples)


def _of_seeds(seeds: Sequence[Resampled]) -> Resampled:
    return Resampled(*(np.concatenate(parts) for parts in zip(*((s.value_S, s.drawn_SN) for s in seeds), strict=True)))


def _oracles(cells: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Data set to the best metrics that its test rows allow, where its manifest knows them: on planted worlds."""
    found = {}
    for cell in cells:
        path = Path(cell.schema.root) / MANIFEST
        if cell.data not in found and path.is_file():
            oracle = json.loads(path.read_text(encoding="utf-8")).get("oracle", {})
            found[cell.data] = oracle.get(cell.task, {})
    return {data: oracle for data, oracle in found.items() if oracle}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: found for name in PACKAGES if (found := _version(name))}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB"
