"""Rows of a batch put side by side and taken apart, with as few copies as can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def by_domain(rows_BW: Tensor, rows: Mapping[str, slice]) -> dict[str, Tensor]:
    """All rows `[B, W]`, domain after domain, to each its own: cut once, as slices add up whole gradients."""
    if len(rows) == 1:
        return dict.fromkeys(rows, rows_BW)
    return dict(
        zip(rows, torch.split_with_sizes(rows_BW, [own.stop - own.start for own in rows.values()]), strict=True)
    )


def concat(parts: Iterable[Tensor]) -> Tensor:
    """Tensors `[B, *]` side by side; one that is alone, but for some of no width, as it is and not as a copy."""
    every = list(parts)
    wide = [part for part in every if part.shape[1]]
    return wide[0] if len(wide) == 1 else torch.cat(every, dim=1)
