"""What came out of a simulation: numbers by day, the A/B difference that may be looked at every day, verdicts.

Shape legend: U users of a seed, S seeds, N resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from torchrec_xd.evaluation.confidence_sequence import Interval, click_rate, difference, sequence
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.evaluation.significance import Resampled, compare, holm, verdict
from torchrec_xd.study.design import LEVEL
from torchrec_xd.study.results import hardware, versions
from torchrec_xd.study.simulation.arm_days import ArmDay
from torchrec_xd.study.simulation.design import Simulation

Line = dict[str, Any]
Days = Sequence[tuple[ArmDay, dict[str, Any], dict[str, Any]]]
"""A day of an arm, its numbers and its counts."""
COUNTED = {"ctr": "user_clicks", "expected": "user_expected"}
"""What verdicts are on: observed clicks per impression, and expected ones, which no chance of clicks disturbs."""
SHOWN = {
    "world",
    "days",
    "warmup",
    "window",
    "training",
    "requests",
    "candidates",
    "places",
    "logs",
    "seeds",
    "samples",
}
CHUNK = 200
"""Resamples that are drawn together."""


def simulation_results(name: str, simulation: Simulation, days: Days) -> dict[str, Any]:
    """The content of results.json.

    Args:
        name: of the study.
        simulation: what was simulated.
        days: all days of all arms, with their numbers and counts.
    """
    totals = _totals(simulation, days)
    return {
        "simulation": name,
        "reference": simulation.reference,
        "arms": list(simulation.served),
        **simulation.model_dump(include=SHOWN),
        "exploration": {arm: simulation.exploration_of(arm) for arm in simulation.served},
        "daily": [{"seed": job.seed, "arm": job.arm, **numbers} for job, numbers, _ in days],
        "differences": _differences(simulation, totals),
        "verdicts": _verdicts(simulation, totals),
        "versions": versions(),
        "hardware": hardware(),
    }


class _Totals:
    """Impressions, clicks and expected clicks of each user of an arm and seed, up to and including each day."""

    def __init__(self, users: int) -> None:
        self._sums = {name: np.zeros(users) for name in ("user_shown", *COUNTED.values())}
        self.by_day: list[dict[str, Array]] = []

    def add(self, counts: Mapping[str, Array]) -> None:
        for name, sums_U in self._sums.items():
            sums_U[counts["user"]] += counts[name]
        seen = np.flatnonzero(self._sums["user_shown"])
        self.by_day.append({name: sums_U[seen] for name, sums_U in self._sums.items()})


Totals = dict[tuple[str, int], _Totals]


def _totals(simulation: Simulation, days: Days) -> Totals:
    users = simulation.world_of(0).users_ever
    found: Totals = {(arm, seed): _Totals(users) for arm in simulation.served for seed in range(simulation.seeds)}
    for job, _, counts in sorted(days, key=lambda day: day[0].day):
        found[job.arm, job.seed].add(counts)
    return found


def _differences(simulation: Simulation, totals: Totals) -> list[Line]:
    """Of every arm to the reference, over all days up to each: a confidence sequence for each seed, and for their mean.

    `true_difference` is that of expected clicks.
    """
    lines: list[Line] = []
    seeds = range(simulation.seeds)
    for arm in (arm for arm in simulation.served if arm != simulation.reference):
        observed = {seed: _by_day(totals, arm, simulation.reference, seed, "ctr") for seed in seeds}
        true = {seed: _by_day(totals, arm, simulation.reference, seed, "expected") for seed in seeds}
        for seed in seeds:
            lines += _lines(arm, seed, sequence(observed[seed]), [delta for delta, _ in true[seed]])
        pooled = [_mean([observed[seed][day] for seed in seeds]) for day in range(simulation.days)]
        true_mean = [_mean([true[seed][day] for seed in seeds])[0] for day in range(simulation.days)]
        lines += _lines(arm, None, sequence(pooled), true_mean)
    return lines


def _by_day(totals: Totals, arm: str, reference: str, seed: int, metric: str) -> list[tuple[float, float]]:
    pairs = zip(totals[arm, seed].by_day, totals[reference, seed].by_day, strict=True)
    name = COUNTED[metric]
    return [difference(click_rate(a[name], a["user_shown"]), click_rate(b[name], b["user_shown"])) for a, b in pairs]


def _mean(of_seeds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of independent estimates, and its variance."""
    deltas, variances = zip(*of_seeds, strict=True)
    return float(np.mean(deltas)), float(np.sum(variances)) / len(variances) ** 2


def _lines(arm: str, seed: int | None, found: Sequence[Interval | None], true: Sequence[float]) -> list[Line]:
    return [
        {
            "arm": arm,
            "seed": seed,
            "day": day,
            **(dict.fromkeys(("difference", "low", "high")) if interval is None else asdict(interval)),
            "true_difference": truth,
        }
        for day, (interval, truth) in enumerate(zip(found, true, strict=True))
    ]


def _verdicts(simulation: Simulation, totals: Totals) -> list[Line]:
    """Every arm against the reference over all days, corrected together by Holm."""
    drawn = {
        (arm, metric): _resampled(simulation, totals, arm, metric) for arm in simulation.served for metric in COUNTED
    }
    lines: list[Line] = []
    for arm in (arm for arm in simulation.served if arm != simulation.reference):
        for metric in COUNTED:
            found = compare(drawn[arm, metric], drawn[simulation.reference, metric])
            lines.append({"arm": arm, "metric": metric, "seeds": simulation.seeds, **asdict(found)})
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = p
        line["verdict"] = verdict(line["delta"], p, line["users"], level=LEVEL)
        line["low"], line["high"] = (None if np.isnan(line[end]) else line[end] for end in ("low", "high"))
    return lines


def _resampled(simulation: Simulation, totals: Totals, arm: str, metric: str) -> Resampled:
    """A rate per impression over all days of each seed, and on resamples of the arm's users (Poisson bootstrap)."""
    values, drawn, users = [], [], []
    place = simulation.served.index(arm)
    for seed in range(simulation.seeds):
        last = totals[arm, seed].by_day[-1]
        counted_U, shown_U = last[COUNTED[metric]], last["user_shown"]
        generator = np.random.default_rng([seed, place])
        parts = []
        for start in range(0, simulation.samples, CHUNK):
            times_NU = generator.poisson(1.0, (min(CHUNK, simulation.samples - start), len(shown_U))).astype(np.float64)
            with np.errstate(invalid="ignore"):
                parts.append((times_NU @ counted_U) / (times_NU @ shown_U))
        values.append(counted_U.sum() / shown_U.sum())
        drawn.append(np.concatenate(parts))
        users.append(len(shown_U))
    return Resampled(np.array(values), np.stack(drawn), min(users))
