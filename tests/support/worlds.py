"""Small planted worlds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from torchrec_xd.datasets.planted.feed import FeedWorld
from torchrec_xd.datasets.planted.homepage import HomepageWorld
from torchrec_xd.datasets.planted.settings import FeedSettings, HomepageSettings

SMALL = {"users": 300, "items": 100, "target_rows": 250, "source_ratio": 2.0, "valid_rows": 120, "test_rows": 900}
"""Settings of a world that is written in no time, in which most metrics are defined."""


def feed(**settings) -> FeedWorld:
    return FeedWorld(FeedSettings(**settings))


def homepage(**settings) -> HomepageWorld:
    return HomepageWorld(HomepageSettings(**settings))


def rows(world, domain=0, split="train", count=40_000):
    """Rows of the first chunk."""
    return pa.table(dict(world.columns(domain, split, 0, count)))


def numpy_column(table, name):
    return table[name].to_numpy()


def deviations(label, prob):
    """By how many standard deviations the number of positives differs from the sum of the probabilities."""
    return (label.sum() - prob.sum()) / np.sqrt((prob * (1 - prob)).sum())
