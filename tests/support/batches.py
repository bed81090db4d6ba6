"""Batches as the reader makes them, from labels and what else metrics read."""

from __future__ import annotations

import math

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "name": "two",
        "user": "user",
        "activity": "recent_clicks",
        "domains": {"product": {"role": "source", "train": "p"}, "coupon": {"role": "target", "train": "c"}},
        "tasks": [
            {"label": "click", "domain": "product"},
            {"label": "redeem", "domain": "coupon"},
            {"label": "view", "domain": "coupon"},
        ],
        "features": [{"column": "item", "kind": "id", "group": "shared", "rows": 9}],
    }
)
TASK_DOMAIN = (0, 1, 1)


def batch_of(offsets, label, weight=None, user=None, extra=None):
    """A batch of what metrics read; labels of other domains become NaN."""
    label_BT = torch.as_tensor(label, dtype=torch.float32).reshape(offsets[-1], -1 if len(label) else 1).clone()
    for task, domain in enumerate(TASK_DOMAIN[: label_BT.shape[1]]):
        label_BT[: offsets[domain], task] = math.nan
        label_BT[offsets[domain + 1] :, task] = math.nan
    rows = offsets[-1]
    no_ids = KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64), lengths=torch.empty(0, dtype=torch.int32))
    return Batch(
        bags=no_ids,
        weighted_bags=no_ids,
        sequences=no_ids,
        dense_BN=torch.empty(rows, 0),
        vector_BV=torch.empty(rows, 0),
        label_BT=label_BT,
        weight_B=torch.ones(rows) if weight is None else torch.as_tensor(weight, dtype=torch.float32),
        user_B=torch.arange(rows) if user is None else torch.as_tensor(user),
        extra_BK=torch.empty(rows, 0, dtype=torch.int64) if extra is None else torch.as_tensor(extra),
        offsets=tuple(offsets),
        position=LoaderState(0, 1),
    )
