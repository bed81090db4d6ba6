"""What a day of an arm is measured by.

Shape legend: R rows shown, U users, N items.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torchrec_xd.datasets.planted.platform import EXPLORED, SCORE, Served
from torchrec_xd.datasets.planted.rows import CLICK, PROB, USER
from torchrec_xd.evaluation.row_quantities import Array

TOP_SHARE = 0.01
"""Of the items, those that count as the popular ones."""


class Measures:
    """Sums over what an arm shows in a day.

    Args:
        living: items that could be shown.
        predicts: whether what the arm ranks by is its prediction of a click.
    """

    def __init__(self, living: int, *, predicts: bool) -> None:
        self._living, self._predicts = living, predicts
        self._best = 0.0
        self._columns: dict[str, list[Array]] = {}

    def add(self, served: Served) -> None:
        """Some requests more."""
        self._best += served.best
        item = next(name for name in served.columns if name == "item" or name.endswith("_item"))
        for name, column in (("item", item), *((name, name) for name in (USER, CLICK, PROB, SCORE, EXPLORED))):
            self._columns.setdefault(name, []).append(np.asarray(served.columns[column]))

    def numbers(self) -> dict[str, Any]:
        """By name; those per impression are means."""
        click_R, prob_R, score_R, explored_R = (self._joined(name) for name in (CLICK, PROB, SCORE, EXPLORED))
        impressions, shown_N = len(click_R), self.counts()["item_shown"]
        return {
            "impressions": impressions,
            "users": len(self.counts()["user"]),
            "clicks": int(click_R.sum()),
            "ctr": float(click_R.mean()),
            "expected": float(prob_R.mean()),
            "best": self._best / impressions,
            "regret": self._best / impressions - float(prob_R.mean()),
            "explored": float(explored_R.mean()),
            "calibration": float(score_R.mean() / prob_R.mean()) if self._predicts else None,
            "coverage": len(shown_N) / self._living,
            "gini": gini(shown_N, self._living),
            "top_share": top_share(shown_N, self._living),
        }

    def counts(self) -> dict[str, Array]:
        """Users and items that were there, and how often."""
        user_U, of_R = np.unique(self._joined(USER), return_inverse=True)
        item_N, shown_N = np.unique(self._joined("item"), return_counts=True)
        return {
            "user": user_U,
            "user_shown": np.bincount(of_R),
            "user_clicks": np.bincount(of_R, self._joined(CLICK)).astype(np.int64),
            "user_expected": np.bincount(of_R, self._joined(PROB)),
            "item": item_N,
            "item_shown": shown_N,
        }

    def _joined(self, name: str) -> Array:
        return np.concatenate(self._columns[name])


def gini(shown_N: Array, living: int) -> float:
    """How unequally impressions are spread over items: 0 evenly, near 1 all on one.

    Args:
        shown_N: impressions of the items that were shown.
        living: items that could be; those that were not shown count as 0.
    """
    sorted_N = np.sort(np.concatenate([np.zeros(max(0, living - len(shown_N))), shown_N]))
    place_N = np.arange(1, len(sorted_N) + 1)
    return float(((2 * place_N - len(sorted_N) - 1) * sorted_N).sum() / (len(sorted_N) * sorted_N.sum()))


def top_share(shown_N: Array, living: int) -> float:
    """Share of the impressions that the most shown hundredth of the living items has, one item at least."""
    most = max(1, round(TOP_SHARE * living))
    return float(np.sort(shown_N)[::-1][:most].sum() / shown_N.sum())
