"""Rows that are given to new keys: first weights that depend on (seed, table, key) alone, and no optimizer state.

Shape legend: N rows, D width of the table, C column shards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchrec_xd.data.key_rows import Hashes, mixed
from torchrec_xd.data.rows import Integers
from torchrec_xd.distributed.lookups import forget_cached_rows
from torchrec_xd.distributed.optimizers import Optimizers

BLOCK = 1 << 18
"""Rows that are drawn at a time."""


@dataclass(frozen=True)
class FreshRows:
    """Rows of one table that belong to keys which had none, or another one."""

    table: str
    weight: str
    """Name of the table's parameter."""
    rows_N: Integers
    """Ascending."""
    hash_N: Hashes
    """Of their keys."""
    std: float
    """Standard deviation of first weights."""
    seed: int


@torch.no_grad()
def redraw(model: nn.Module, optimizers: Optimizers, fresh: FreshRows) -> None:
    """Draw the weights of rows anew, and set their optimizer state to zero: on this rank, whatever the plan."""
    weight = model.state_dict()[fresh.weight]
    rows, dim = weight.metadata().size if hasattr(weight, "local_shards") else weight.shape
    for tensor, (first, column) in _pieces(weight):
        inside = _inside(fresh.rows_N, first, len(tensor))
        for at in range(inside.start, inside.stop, BLOCK):
            part = slice(at, min(at + BLOCK, inside.stop))
            drawn = torch.from_numpy(draw(fresh, fresh.hash_N[part], dim))[:, column : column + tensor.shape[1]]
            tensor[torch.from_numpy(fresh.rows_N[part] - first)] = drawn.to(tensor)
    forget_cached_rows(model)
    state = optimizers.state.state_dict()["state"]
    for name, parts in state.items():
        if name.partition(".")[2] == fresh.weight:
            for value in parts.values():
                _clear(value, fresh.rows_N, rows)
    optimizers.state.load_state_dict({"state": state})


def draw(fresh: FreshRows, hash_N: Hashes, dim: int) -> NDArray[np.float32]:
    """Normal numbers `[N, dim]`, of each key its own (Box and Muller)."""
    text = f"{fresh.seed}/{fresh.table}".encode()
    own = np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
    counters = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    bits_ND = mixed(mixed(hash_N ^ own)[:, None] + counters)
    uniform_ND = ((bits_ND >> np.uint64(11)).astype(np.float64) + 1) / 2.0**53
    radius, angle = np.sqrt(-2 * np.log(uniform_ND[:, : dim // 2])), 2 * np.pi * uniform_ND[:, dim // 2 :]
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1) * fresh.std
    return drawn.astype(np.float32)


def _pieces(value: Any) -> list[tuple[Tensor, tuple[int, int]]]:
    """What of a tensor lies on this rank, and where each piece begins."""
    if not hasattr(value, "local_shards"):
        return [(value, (0, 0))]
    return [(piece.tensor, (*piece.metadata.shard_offsets, 0)[:2]) for piece in value.local_shards()]


def _inside(rows_N: Integers, first: int, count: int) -> slice:
    start, stop = np.searchsorted(rows_N, [first, first + count])
    return slice(int(start), int(stop))


def _clear(value: Any, rows_N: Integers, rows: int) -> None:
    """Zero for some rows, in a state that has an entry per row and column shard, or one per weight."""
    for tensor, (first, _) in _pieces(value):
        if not tensor.dim():
            continue  # a count of steps
        for begin in range(first // rows * rows, first + len(tensor), rows):
            inside = _inside(rows_N + begin, first, len(tensor))
            tensor[torch.from_numpy(rows_N[inside] + begin - first)] = 0
