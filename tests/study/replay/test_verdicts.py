"""Verdicts between policies: the arithmetic, by hand."""

import numpy as np
import pytest

from torchrec_xd.evaluation.significance import compare, holm
from torchrec_xd.study.replay.design import Replay
from torchrec_xd.study.replay.verdicts import block_length, replay_verdicts, resample_blocks

REPLAY = Replay.model_validate(
    {
        "world": {"preset": "feed_days"},
        "warm_up": 1,
        "policies": ["never", "scratch", "incremental"],
        "models": {"m": {"config": "m.yaml"}},
        "samples": 500,
    }
)


def lines(values):
    """Policy to [seed][slice] of (AUC, log loss); the first slice is that of the warm-up."""
    return [
        {"model": "m", "task": "t", "policy": policy, "seed": s, "slice": str(d), "auc": pair[0], "logloss": pair[1]}
        for policy, seeds in values.items()
        for s, slices in enumerate(seeds)
        for d, pair in enumerate([(0.5, 0.5), *slices])
    ]


def drawn_by_hand(value_SD, block, samples):
    generator, slices = np.random.default_rng(0), value_SD.shape[1]
    starts = generator.integers(slices, size=(samples, -(-slices // block)))
    found = np.empty((len(value_SD), samples))
    for n in range(samples):
        days = [(start + i) % slices for start in starts[n] for i in range(block)][:slices]
        found[:, n] = [np.mean([row[day] for day in days]) for row in value_SD]
    return found


def test_blocks_are_runs_of_slices_in_a_circle():
    value_SD = np.arange(14.0).reshape(2, 7) ** 2
    found = resample_blocks(value_SD, 3, 40)
    assert np.allclose(found.drawn_SN, drawn_by_hand(value_SD, 3, 40))
    assert found.value_S.tolist() == value_SD.mean(axis=1).tolist()
    assert found.users == 2  # whole blocks
    whole = resample_blocks(value_SD, 7, 40)
    assert np.allclose(whole.drawn_SN, value_SD.mean(axis=1)[:, None])  # one block: all slices, whichever comes first
    assert [block_length(n, None) for n in (1, 3, 8, 20, 30)] == [1, 1, 2, 3, 3]
    assert [block_length(n, 4) for n in (2, 9)] == [2, 4]


def test_verdicts_are_those_of_the_resampled_means():
    random = np.random.default_rng(1)
    day = random.normal(0, 0.05, size=20)  # all policies have the same good and bad days
    values = {
        policy: [
            [(0.7 + more + day[d] + random.normal(0, 0.002), 0.5 - more + random.normal(0, 0.002)) for d in range(20)]
            for _ in range(3)
        ]
        for policy, more in {"never": -0.1, "scratch": 0.0, "incremental": 0.0}.items()
    }
    found = {(line["policy"], line["metric"]): line for line in replay_verdicts(REPLAY, lines(values), "0")}
    assert set(found) == {(policy, metric) for policy in ("never", "scratch") for metric in ("auc", "logloss")}
    by_hand = {}
    for policy, metric in found:
        place = ("auc", "logloss").index(metric)
        pair = [np.array([[day[place] for day in seed] for seed in values[p]]) for p in (policy, "incremental")]
        by_hand[policy, metric] = compare(*(resample_blocks(each, 3, 500) for each in pair))
        assert found[policy, metric]["delta"] == pytest.approx(np.mean(pair[0] - pair[1]))
    adjusted = holm([each.p for each in by_hand.values()])
    for (key, each), p in zip(by_hand.items(), adjusted, strict=True):
        line = found[key]
        assert (line["low"], line["high"], line["p"], line["p_holm"]) == (each.low, each.high, each.p, p)
        assert (line["slices"], line["block"], line["blocks"], line["seeds"]) == (20, 3, 6, 3)
    assert found["never", "auc"]["verdict"] == found["never", "logloss"]["verdict"] == "worse"
    assert found["scratch", "auc"]["verdict"] == "can't tell"


def test_few_slices_give_no_verdict_and_unknown_metrics_no_slice():
    values = {
        policy: [[(more, 0.5)] * 4 + [(None, 0.5)]] for policy, more in {"never": 0.5, "incremental": 0.9}.items()
    }
    found = {line["metric"]: line for line in replay_verdicts(REPLAY, lines(values), "0")}
    assert (found["auc"]["slices"], found["logloss"]["slices"]) == (4, 5)
    assert found["auc"]["delta"] == pytest.approx(-0.4)
    assert (found["auc"]["verdict"], found["auc"]["p_holm"]) == ("too few slices", None)
