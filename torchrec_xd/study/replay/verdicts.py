"""Verdicts between policies: their metrics slice by slice, resampled in blocks of slices, spread over seeds.

Shape legend: S seeds, D slices, N resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.evaluation.significance import MIN_USERS, Metric, Resampled, compare, holm, verdict
from torchrec_xd.study.design import LEVEL
from torchrec_xd.study.replay.design import Replay

Line = dict[str, Any]
MIN_BLOCKS = 5
"""Blocks of slices from which on there are verdicts."""
TOO_FEW = "too few slices"


def replay_verdicts(replay: Replay, scores: Sequence[Line], first: str) -> list[Line]:
    """Every policy against the reference, by model, task and metric.

    A policy's metric is the mean over slices. Only slices count on which the metric is known of both policies and all
    seeds that they have in common. All comparisons of a model and task are corrected together (Holm).

    Args:
        replay: what is compared.
        scores: lines of `measured`.
        first: the first slice that was scored; it does not count, as all policies score it with the same model.
    """
    found: list[Line] = []
    for model, task in dict.fromkeys((line["model"], line["task"]) for line in scores):
        of = [line for line in scores if (line["model"], line["task"]) == (model, task) and line["slice"] != first]
        lines = []
        for policy in replay.policies:
            for metric in replay.metrics if policy != replay.reference else ():
                one, other = (_by_slice(of, name, metric) for name in (policy, replay.reference))
                seeds = sorted({seed for seed, _ in one} & {seed for seed, _ in other})
                slices = [
                    date
                    for date in dict.fromkeys(line["slice"] for line in of)
                    if seeds and all((seed, date) in each for each in (one, other) for seed in seeds)
                ]
                if slices:
                    where = {"model": model, "task": task, "policy": policy, "metric": metric, "seeds": len(seeds)}
                    pair = [np.array([[each[s, d] for d in slices] for s in seeds]) for each in (one, other)]
                    lines.append({**where, **_compared(pair[0], pair[1], replay)})
        found += _decided(lines)
    return found


def block_length(slices: int, given: int | None) -> int:
    """Slices in a row that are drawn together."""
    return min(slices, given or max(1, round(slices ** (1 / 3))))


def resample_blocks(value_SD: Array, block: int, samples: int, seed: int = 0) -> Resampled:
    """Means over slices, of all and of resampled ones; the same draws whatever the values.

    Blocks of `block` slices in a row begin at random slices, go on with the first slice after the last (circular block
    bootstrap), and are cut to D slices in all. Of the whole blocks there are, `users` says how many.
    """
    slices = value_SD.shape[1]
    generator = np.random.default_rng(seed)
    start_NB = generator.integers(slices, size=(samples, -(-slices // block)))
    drawn_ND = ((start_NB[:, :, None] + np.arange(block)) % slices).reshape(samples, -1)[:, :slices]
    return Resampled(value_SD.mean(axis=1), value_SD[:, drawn_ND].mean(axis=2), slices // block)


def _by_slice(lines: Sequence[Line], policy: str, metric: Metric) -> Mapping[tuple[int, str], float]:
    of = [line for line in lines if line["policy"] == policy and line[metric] is not None]
    return {(line["seed"], line["slice"]): line[metric] for line in of}


def _compared(one_SD: Array, other_SD: Array, replay: Replay) -> Line:
    slices = one_SD.shape[1]
    block = block_length(slices, replay.block)
    one, other = (resample_blocks(each, block, replay.samples) for each in (one_SD, other_SD))
    found = asdict(compare(one, other))
    known = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}
    return {"slices": slices, "block": block, "blocks": known.pop("users"), **known}


def _decided(lines: Sequence[Line]) -> list[Line]:
    """The lines with their verdicts; those of too few blocks are not among what is corrected for."""
    adjusted = iter(holm([line["p"] for line in lines if line["blocks"] >= MIN_BLOCKS]))
    found = []
    for line in lines:
        p = next(adjusted) if line["blocks"] >= MIN_BLOCKS else None
        said = TOO_FEW if p is None else verdict(line["delta"], p, MIN_USERS, metric=line["metric"], level=LEVEL)
        found.append({**line, "p_holm": p, "verdict": said})
    return found
