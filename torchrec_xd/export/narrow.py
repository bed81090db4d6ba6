"""Tables in fewer bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.data.rows import Floats
from torchrec_xd.serving.artifact import TableEntry, TablesDtype


def narrowed(
    name: str, weight: Floats, entry: TableEntry, dtype: TablesDtype
) -> tuple[TableEntry, dict[str, NDArray[Any]]]:
    """A table `[rows, D]` as it is written: what it is then, and its arrays by name.

    int8 is asymmetric by row: each row's numbers become 256 levels from its smallest to its largest one. The half
    floats of scale and offset are relative to the table's largest number, so that small weights keep their digits.
    """
    if dtype == "fp32":
        return entry, {name: weight}
    if dtype == "fp16":
        return entry.model_copy(update={"dtype": dtype}), {name: weight.astype(np.float16)}
    unit = float(np.abs(weight).max(initial=0.0)) or 1.0
    low, high = weight.min(axis=1) / unit, weight.max(axis=1) / unit
    offset = low.astype(np.float16)
    # Rounded up a little where halves would not reach the largest number.
    scale = ((high - offset.astype(np.float32)) * (1 + 2**-11)).astype(np.float16)
    step = scale.astype(np.float32) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = (weight / unit - offset.astype(np.float32)[:, None]) / step[:, None]
    levels = np.where(step[:, None] > 0, levels, 0.0)
    whole = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    written = entry.model_copy(update={"dtype": dtype, "unit": unit})
    return written, {name: whole, f"{name}/scale": scale, f"{name}/offset": offset}
