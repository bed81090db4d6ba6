"""Metrics over several gloo ranks equal those of one process that holds all rows."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.batches import SCHEMA, batch_of
from tests.support.ranks import run_ranks
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation import metrics, routing
from torchrec_xd.evaluation.metrics import Evaluation, MetricSettings

SETTINGS = MetricSettings(slices={"campaign": {"A": [1, 2]}, "store": None})
SCORES = {
    "continuous": lambda draw, shape: draw.normal(0.6, 0.4, shape),
    "tied": lambda draw, shape: draw.integers(0, 4, shape) / 3,
    "constant": lambda draw, shape: np.full(shape, 0.25),
    "skewed": lambda draw, shape: draw.random(shape) ** 40,
}


def rows_of(seed, rows, score="continuous", *, click_rate=0.3, users=40, dtype=np.float32):
    """A batch with rows of both domains, and its scores; ids of users share the divisor 12, some are negative."""
    draw = np.random.default_rng(seed)
    extra = np.stack(
        [draw.integers(0, 40, rows), draw.integers(1, 5, rows), draw.integers(0, 2, rows) + seed % 2], axis=1
    )
    batch = batch_of(
        [0, rows // 3, rows],
        draw.random((rows, 3)) < click_rate,
        weight=draw.choice([1, 125, 1 / 3], rows),
        user=12 * (draw.integers(users, size=rows) - users // 2),
        extra=extra,
    )
    return batch, torch.from_numpy(SCORES[score](draw, (rows, 3)).astype(dtype))


def heavy_user_of(seed):
    """As `rows_of`, with nine rows in ten one user's, whose scores are lower than everybody else's."""
    batch, score_BT = rows_of(seed, 1500)
    heavy_B = torch.arange(len(batch)) % 10 > 0
    batch.user_B[heavy_B] = 0
    score_BT[~heavy_B] += 10
    return batch, score_BT


def cases(world_size):
    """Name -> what each rank updates with."""
    ranks = range(world_size)
    return {
        "even": [[rows_of(rank, 2000), rows_of(rank + 10, 300)] for rank in ranks],
        "uneven": [[rows_of(rank, 7 + 400 * rank)] for rank in ranks],
        "all rows on one rank": [[rows_of(rank, 1000)] if rank == 1 else [] for rank in ranks],
        "one row": [[rows_of(rank, 1)] if rank == 0 else [] for rank in ranks],
        "no rows": [[] for _ in ranks],
        "heavy ties": [[rows_of(rank, 600, "tied")] for rank in ranks],
        "one score": [[rows_of(rank, 100, "constant")] for rank in ranks],
        "skewed": [[rows_of(rank, 400, "skewed")] for rank in ranks],
        "other scores on each rank": [[rows_of(rank, 100, score)] for rank, score in zip(ranks, SCORES, strict=False)],
        "float64": [[rows_of(rank, 300, dtype=np.float64)] for rank in ranks],
        "float64, and no rows": [[rows_of(rank, 300, dtype=np.float64)] if rank == 1 else [] for rank in ranks],
        "one user": [[rows_of(rank, 50, users=1)] for rank in ranks],
        "heavy user": [[heavy_user_of(rank)] for rank in ranks],
        "one class": [[rows_of(rank, 60, click_rate=1.1)] for rank in ranks],
    }


def evaluation_of(updates):
    evaluation = Evaluation(SCHEMA, SETTINGS)
    for batch, score_BT in updates:
        evaluation.update(batch, score_BT)
    return evaluation


def refusal(group, spoil):
    """What the evaluation says if the batch of the group's last rank is spoilt."""
    batch, score_BT = rows_of(group.rank(), 20)
    if group.rank() == group.size() - 1:
        spoil(batch, score_BT)
    with pytest.raises(UserError) as error:
        evaluation_of([(batch, score_BT)]).compute(group)
    return str(error.value)


def diverge(batch, score_BT):
    score_BT[[7, 8, 19], 2] = torch.tensor([math.nan, math.inf, math.nan])


def mislabel(batch, score_BT):
    batch.label_BT[0, 0] = 2


def evaluate(rank, groups):
    """On one rank, for each group that it is in: reports, the most rows that came by user and by score, refusals.

    Also reports of the same rows in many small slabs, parts and ranges of scores.
    """
    came, all_to_all = defaultdict(list), dist.all_to_all_single

    def counting(output, *args, **kwargs):
        # A column of labels comes with rows of users, one of two weights with distinct scores.
        kind = "user" if output.dtype == torch.uint8 else "score" if output.shape[1:] == (2,) else None
        came[kind].append(len(output))
        return all_to_all(output, *args, **kwargs)

    dist.all_to_all_single = counting
    outcomes = {}
    for members in groups:
        group = dist.new_group(members)
        if rank not in members:
            continue
        reports, in_turns, most_rows = {}, {}, {}
        for name, of_rank in cases(len(members)).items():
            came.clear()
            reports[name] = evaluation_of(of_rank[group.rank()]).compute(group)
            most_rows[name] = max(came["user"]), max(came["score"])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(routing, "PART_ROWS", 97)
                patch.setattr(metrics, "SLAB_ROWS", 211)
                in_turns[name] = evaluation_of(of_rank[group.rank()]).compute(group)
        outcomes[members] = reports, in_turns, most_rows, [refusal(group, spoil) for spoil in (diverge, mislabel)]
    return outcomes


GROUPS = ((0, 1, 2), (1, 2))


@pytest.fixture(scope="module")
def outcomes():
    """Members -> what `evaluate` found on each of them."""
    by_rank = run_ranks(3, evaluate, GROUPS)
    return {members: [by_rank[rank][members] for rank in members] for members in GROUPS}


def assert_equal(found, expected, path):
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key, value in expected.items():
            assert_equal(found[key], value, f"{path}/{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("members", GROUPS)
@pytest.mark.parametrize("name", cases(2))
@pytest.mark.parametrize("kind", ["at once", "in turns"])
def test_equal_to_one_process(outcomes, members, name, kind):
    alone = evaluation_of([update for updates in cases(len(members))[name] for update in updates]).compute(None)
    first, *others = [of_rank[kind == "in turns"][name] for of_rank in outcomes[members]]
    assert_equal(first, alone, name)
    assert all(other == first for other in others), "ranks disagree"


@pytest.mark.parametrize("members", GROUPS)
def test_no_rank_holds_much_more_than_its_share(outcomes, members):
    ranks = len(members)
    coupon_rows = {"even": 2300 * 2 // 3 * ranks, "all rows on one rank": 1000 * 2 // 3, "heavy user": 1000 * ranks}
    for _, _, most_rows, _ in outcomes[members]:
        for name, rows in coupon_rows.items():
            by_user, by_score = most_rows[name]
            assert by_score < 1.1 * rows / ranks, name
            assert by_user < 1.4 * rows / ranks or name == "heavy user", name


@pytest.mark.parametrize("members", GROUPS)
def test_faults_of_one_rank_are_told_on_all(outcomes, members):
    for *_, (diverged, mislabelled) in outcomes[members]:
        assert diverged.startswith("task 'view@coupon': in 3 rows a score is NaN or infinite")
        assert mislabelled.startswith("task 'click@product': in 1 rows a label is neither 0 nor 1")
