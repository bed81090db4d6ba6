"""Verdicts of a study: every model against the reference, on all test rows of a data set and on their slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.evaluation.significance import (
    MIN_USERS,
    Metric,
    Resampled,
    compare,
    holm,
    resample,
    spreads_needed,
    users_that_count,
    verdict,
)
from torchrec_xd.study.cells import Cell
from torchrec_xd.study.design import LEVEL, Study, samples_needed
from torchrec_xd.study.scores import Outside, Rows, read_scores, task_rows

Scored: TypeAlias = Cell | Outside
Line: TypeAlias = dict[str, Any]
MAX_GROUPS = 50
"""A column with more groups is reported without intervals: none of so many comparisons could be decided."""
FAR, NEAR = 5.0, 2.5
"""Differences, in standard deviations over seeds: a study that only finds those beyond FAR is warned of, and told how
many seeds would find one of NEAR, which is what 3 seeds find in one comparison."""


@dataclass(frozen=True)
class Verdicts:
    """Of one data set."""

    whole: list[Line]
    """By model and metric, on all test rows."""
    slices: list[Line]
    """The same by column and group."""


def verdicts(study: Study, cells: Sequence[Scored]) -> Verdicts:
    """Every model of one data set against the reference, on the seeds that both have.

    All comparisons on the whole data set are corrected together, and so are those of all groups of a slice column. A
    metric that the rows leave undefined (one class only) is left out.
    """
    by_model: dict[str, dict[int, Scored]] = {}
    for cell in cells:
        by_model.setdefault(cell.model, {})[cell.seed] = cell
    reference = by_model.pop(study.reference, {})
    pairs = {
        model: [(seeds[seed], reference[seed]) for seed in sorted(set(seeds) & set(reference))]
        for model, seeds in by_model.items()
    }
    pairs = {model: found for model, found in pairs.items() if found}
    if not pairs:
        return Verdicts([], [])
    like = next((cell for cell in cells if isinstance(cell, Cell)), None)
    schema, task = cells[0].schema, cells[0].task
    assert task is not None
    rows = task_rows(schema, task, None if like is None else like.config.metrics)
    named = {cell.name: cell for pair in pairs.values() for both in pair for cell in both}
    scores = {
        name: read_scores(cell.scores, schema, task, rows.file_user)[rows.in_file] for name, cell in named.items()
    }
    whole = _decided(_lines(study, rows, scores, pairs, study.samples))
    slices: list[Line] = []
    for column, (value_R, groups) in rows.slices.items():
        if len(groups) <= MAX_GROUPS:
            samples = max(study.samples, 2 * samples_needed(len(groups) * len(pairs) * len(study.metrics)))
            family: list[Line] = []
            for group, members in groups.items():
                kept = np.flatnonzero(np.isin(value_R, members))
                of_group = {name: score_R[kept] for name, score_R in scores.items()}
                lines = _lines(study, rows.take(kept), of_group, pairs, samples)
                family += [{**line, "column": column, "group": group} for line in lines]
            slices += _decided(family)
    return Verdicts(whole, slices)


def power_warnings(study: Study) -> list[str]:
    """A line for every data set on which only very large differences could get a verdict."""
    found = []
    for label in study.data:
        models = sum(model.shown and model.on(label) for model in study.models.values())
        comparisons = len(study.metrics) * (models - 1)
        if study.seeds > 1 and comparisons and (far := spreads_needed(study.seeds, comparisons, LEVEL)) > FAR:
            seeds = next(n for n in range(study.seeds, 1000) if spreads_needed(n, comparisons, LEVEL) <= NEAR)
            alone = spreads_needed(study.seeds, 1, LEVEL)
            found.append(
                f"{label}: {study.seeds} seeds leave little power to {comparisons} comparisons: a verdict needs a "
                f"difference of {far:.1f} standard deviations over seeds (an interval excludes 0 from {alone:.1f} on); "
                f"with {seeds} seeds {spreads_needed(seeds, comparisons, LEVEL):.1f} are enough (seeds: {seeds}), or "
                "compare fewer models or metrics"
            )
    return found


def _lines(
    study: Study,
    rows: Rows,
    scores: Mapping[str, Array],
    pairs: Mapping[str, Sequence[tuple[Scored, Scored]]],
    samples: int,
) -> list[Line]:
    """Comparisons by model and metric, without a verdict yet."""
    metrics = [m for m in study.metrics if users_that_count(m, rows.label, rows.user, rows.weight)]
    if not metrics:
        return []
    found = resample(scores, rows.label, rows.user, rows.weight, metrics=metrics, samples=samples)
    lines = []
    for model, pair in pairs.items():
        for metric in metrics:
            of_model, of_reference = (_of_seeds(found, [both[side].name for both in pair], metric) for side in (0, 1))
            where = {"model": model, "data": pair[0][0].data, "metric": metric, "seeds": len(pair)}
            lines.append({**where, **asdict(compare(of_model, of_reference))})
    return lines


def _decided(lines: Sequence[Line]) -> list[Line]:
    """The lines with their verdicts; those with too few users for one are not among what is corrected for."""
    enough = [line for line in lines if line["users"] >= MIN_USERS]
    adjusted = iter(holm([line["p"] for line in enough]))
    found = []
    for line in lines:
        p = next(adjusted) if line["users"] >= MIN_USERS else None
        said = verdict(line["delta"], 1.0 if p is None else p, line["users"], metric=line["metric"], level=LEVEL)
        known = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        found.append({**known, "p_holm": p, "verdict": said})
    return found


def _of_seeds(found: Mapping[tuple[str, Metric], Resampled], cells: Sequence[str], metric: Metric) -> Resampled:
    of = [found[name, metric] for name in cells]
    return Resampled(np.concatenate([s.value_S for s in of]), np.concatenate([s.drawn_SN for s in of]), of[0].users)
