"""AUC and GAUC by slow loops, and predictions to measure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st


def slow_auc(score, label, weight):
    pairs = ordered = 0.0
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            pairs += weight[i] * weight[j]
            ordered += weight[i] * weight[j] * (score[i] > score[j] or 0.5 * (score[i] == score[j]))
    return ordered / pairs if pairs else math.nan


def slow_gauc(score, label, user, weight):
    total = area = 0.0
    excluded = 0
    users = set(user.tolist())
    for one in users:
        rows = user == one
        auc = slow_auc(score[rows], label[rows], weight[rows])
        if math.isnan(auc):
            excluded += 1
            continue
        area += weight[rows].sum() * auc
        total += weight[rows].sum()
    return area / total if total else math.nan, len(users) - excluded, excluded


def equal(one, other):
    return vars(one) == pytest.approx(vars(other), rel=1e-12, nan_ok=True)


@st.composite
def predictions(draw, users=6):
    """Scores with many ties, labels, users and weights of at least one row."""
    seed, rows = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 60))
    random = np.random.default_rng(seed)
    levels = draw(st.sampled_from([2, 5, 10_000]))
    score = random.integers(1, levels, rows) / levels
    label = (random.random(rows) < draw(st.sampled_from([0.1, 0.5, 1.0]))).astype(np.float32)
    weight = random.choice([0.25, 1.0, 3.0, 1 / 3], rows)
    return score, label, random.integers(-users, users, rows), weight
