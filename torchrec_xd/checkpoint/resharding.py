"""Optimizer states from one plan to another, and of tables that have more rows than the checkpoint's.

Weights, and states with an entry per weight, fit any plan as they are. Two forms depend on it: row-wise Adagrad keeps a
state per row and column shard, and replicated tables have an optimizer of their own. New rows have a state of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

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
    """Of the table there."""
    rows_here: int
    """Of the table here, as many or more."""


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
        table = name.partition(".")[2]
        rows_here, rows = (
            (shape(entry) or (0,))[0] for entry in (state["model"].get(table), index.get(f"model.{table}"))
        )
        for part, value in parts.items():
            found, wanted = shape(index.get(begin + part)), shape(value)
            if _fits(found, wanted, rows, rows_here):
                continue
            if part == "step":  # of Adagrad, which uses it for learning rate decay only
                moved[name, part] = None
            elif part.rpartition(".")[2] in ACCUMULATORS and len(sources) == 1 and rows:
                source = sources[0].removeprefix(begin)
                moved[name, part] = Moved(value, source, shape(index[sources[0]]) or (), rows, rows_here)
            else:
                faults.append(f"'{begin}{part}': {wanted} expected, {found} found")
    if faults:
        raise UserError(f"{folder} cannot go on with this optimizer:\n" + "\n".join(f"  {fault}" for fault in faults))
    return moved


def _fits(found: tuple[int, ...] | None, wanted: tuple[int, ...] | None, rows: int, rows_here: int) -> bool:
    """Whether a state can be read as the weights are: it is of equal size, or has an entry per row of a grown table.

    Sizes alone do not tell: two column shards of 60 rows have as many row states as one of 120.
    """
    if rows == rows_here or not wanted:
        return found == wanted
    return found is not None and found[:1] == (rows,) and wanted == (rows_here, *found[1:])


def convert(moved: Moved, name: str, folder: Path) -> None:
    """Fill a state from the checkpoint; one whole table's state in memory meanwhile."""
    saved = torch.empty(moved.size)
    load({"optimizer": {name: {moved.source: saved}}}, folder, alone=True)  # other ranks hold other tables
    if saved.dim() == 1 or saved.shape[1] == 1:
        size = shape(moved.value) or ()
        states_CR = recut(saved.reshape(-1, moved.rows), math.prod(size) // moved.rows_here)
        saved = pad(states_CR, (0, moved.rows_here - moved.rows)).reshape(size)
    elif moved.rows < moved.rows_here:
        saved = pad(saved, (0, 0, 0, moved.rows_here - moved.rows))
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
