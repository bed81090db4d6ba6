"""Optimizer states from one plan to another.

Weights, and states with an entry per weight, fit any plan as they are. Two forms depend on it: row-wise Adagrad keeps a
state per row and column shard, and replicated tables have an optimizer of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrec_xd.checkpoint.reading import Reader, load, shape
from torchrec_xd.errors import UserError


@dataclass(frozen=True)
class Moved:
    """The accumulator of a table's optimizer that the checkpoint holds in another form than this plan's."""

    value: Any
    """To be filled: a tensor, or a sharded one."""
    source: str
    """Its name in the checkpoint."""
    size: tuple[int, ...]
    """Its size there."""
    rows: int
    """Of the table."""


ACCUMULATORS = ("momentum1", "sum")
"""What (row-wise) Adagrad's sum of squares is called: by the fused kernels, and by torch for replicated tables."""


def moved_states(state: dict[str, Any], folder: Path) -> dict[tuple[str, str], Moved | None]:
    """What `folder` holds in another form than `state`, by names in `state["optimizer"]`; None stays as it is.

    Column shards keep a row state each, and replicated tables have an optimizer of their own.

    Raises:
        UserError: a state that this run needs and that the checkpoint holds in no form.
    """
    index = Reader(folder).read_metadata().state_dict_metadata
    moved: dict[tuple[str, str], Moved | None] = {}
    faults = []
    for name, parts in state["optimizer"].items():
        begin = f"optimizer.{name}."
        sources = [key for key in index if key.startswith(begin) and key.rpartition(".")[2] in ACCUMULATORS]
        rows = (shape(state["model"].get(name.partition(".")[2])) or (0,))[0]
        for part, value in parts.items():
            found = shape(index.get(begin + part))
            if found == shape(value):
                continue
            if part == "step":  # of Adagrad, which uses it for learning rate decay only
                moved[name, part] = None
            elif part.rpartition(".")[2] in ACCUMULATORS and len(sources) == 1 and rows:
                moved[name, part] = Moved(value, sources[0].removeprefix(begin), shape(index[sources[0]]) or (), rows)
            else:
                faults.append(f"'{begin}{part}': {shape(value)} expected, {found} found")
    if faults:
        raise UserError(f"{folder} cannot go on with this optimizer:\n" + "\n".join(f"  {fault}" for fault in faults))
    return moved


def convert(moved: Moved, name: str, folder: Path) -> None:
    """Fill a state from the checkpoint; one whole table's state in memory meanwhile."""
    saved = torch.empty(moved.size)
    load({"optimizer": {name: {moved.source: saved}}}, folder, alone=True)  # other ranks hold other tables
    if saved.dim() == 1 or saved.shape[1] == 1:
        size = shape(moved.value) or ()
        saved = recut(saved.reshape(-1, moved.rows), math.prod(size) // moved.rows).reshape(size)
    if not hasattr(moved.value, "local_shards"):
        moved.value.copy_(saved)
        return
    for piece in moved.value.local_shards():
        offsets, sizes = piece.metadata.shard_offsets, piece.metadata.shard_sizes
        piece.tensor.copy_(saved[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))])


def recut(state_CR: torch.Tensor, num: int) -> torch.Tensor:
    """Row states of C column shards of equal width to those of `num`: each the mean over the columns that it covers.

    A row state sums mean squared gradients over its columns: joining shards is exact, parting them is not, as what each
    part had is not known any more.
    """
    old = state_CR.shape[0]
    edges = [torch.arange(count + 1, dtype=torch.float64) / count for count in (num, old)]
    low = torch.maximum(edges[0][:-1, None], edges[1][None, :-1])
    high = torch.minimum(edges[0][1:, None], edges[1][None, 1:])
    share = (high - low).clamp(min=0) * num
    return (share @ state_CR.double()).to(state_CR.dtype)
